"""From a checkpoint to files that a service can load: ONNX graphs with NMS inside, INT8, manifests, model cards."""
