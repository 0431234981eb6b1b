"""Which variant answers which request, and when."""
