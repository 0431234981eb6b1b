"""Evaluation: sources of detections, the protocols of WIDER Face, FDDB and COCO, and the commands that run them."""
