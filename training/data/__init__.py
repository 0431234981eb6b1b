"""Pictures and boxes in WIDER Face's layout, cached, cropped and augmented."""
