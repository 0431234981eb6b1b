"""Evaluation: the WIDER Face protocol, sources of detections, and the `evaluate` command."""
