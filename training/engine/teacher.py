"""The teacher of a distilled run: a trained detector, whole and still."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from service.repository.store import sha256_of
from training.config import TrainConfig
from training.engine.warm_start import read_detector
from training.models.detector import Detector, DetectorConfig
from training.models.distillation import DistillConfig


def teacher_name(path: Path) -> str:
    """What provenance calls a teacher: `d4/best.pt, sha256 0123456789ab`. Raises FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; --teacher takes a checkpoint or a member's exported .onnx")
    return f"{path.absolute().parent.name}/{path.name}, sha256 {sha256_of(path)[:12]}"


def taught_by(config: TrainConfig, teacher: Path) -> TrainConfig:
    """The run with that teacher, weighted as the config says or else by default. Raises FileNotFoundError."""
    return replace(config, distill=replace(config.distill or DistillConfig(), teacher=teacher_name(teacher)))


def load_teacher(path: Path, student: DetectorConfig) -> Detector:
    """The detector in a checkpoint or in a member's full-precision `.onnx`, in eval mode, without gradients.

    An exported file is read as the manifest beside it describes it. Raises FileNotFoundError, and ValueError where
    the file holds no such detector, or one whose anchors are not the student's.
    """
    detector = read_detector(path, None).detector
    if detector.anchor_config != student.anchors:
        raise ValueError(
            f"{path} cannot teach this detector: its anchors are {detector.anchor_config}, not {student.anchors}"
        )
    return detector.eval().requires_grad_(False)
