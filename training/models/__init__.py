"""The detector of sections 4 and 5.1 of the paper: backbone, neck, head, anchors, matching, losses."""

from training.models.detector import Detector, DetectorConfig, Output, build_detector

__all__ = ["Detector", "DetectorConfig", "Output", "build_detector"]
