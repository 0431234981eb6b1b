"""What each part of a recipe is worth: short runs that differ in one thing."""
