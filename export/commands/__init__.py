"""What `python -m export` can do; `export.__main__` registers it. torch and onnx are imported inside commands, so that
`list` starts at once and needs neither."""
