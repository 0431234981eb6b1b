"""From bytes to pixels, and from boxes back to a picture."""
