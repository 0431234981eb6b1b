"""TensorRT: build plans from ONNX files, keep them, tell whether one can be used here."""
