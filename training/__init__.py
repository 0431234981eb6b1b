"""asfd's training side: detectors, data, losses, the training loop and the evaluation protocols (PyTorch)."""
