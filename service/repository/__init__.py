"""The model repository: what `export/` writes and the service reads."""
