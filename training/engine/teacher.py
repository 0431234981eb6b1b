"""The teacher of a distilled run: a trained detector, whole and still."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from service.repository.manifest import MANIFEST_NAME
from service.repository.store import RepositoryError, load_manifest, sha256_of
from training.config import TrainConfig
from training.engine import checkpoint
from training.engine.warm_start import load_exported
from training.models.backbone import BackboneName
from training.models.detector import Detector, DetectorConfig, build_detector
from training.models.distillation import DistillConfig
from training.models.necks import NeckOptions
from training.supernet.path import SinglePath


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
    if path.suffix == ".onnx":
        detector = build_detector(exported_config(path))
        # In eval mode the norms compute the same whatever they were measured on, so that noise does.
        noise = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
        load_exported(detector, path, [noise])
    else:
        detector, _ = checkpoint.load_detector(path)
    if detector.anchor_config != student.anchors:
        raise ValueError(
            f"{path} cannot teach this detector: its anchors are {detector.anchor_config}, not {student.anchors}"
        )
    return detector.eval().requires_grad_(False)


def exported_config(path: Path) -> DetectorConfig:
    """The architecture that a manifest tells of. Raises ValueError where it tells of fresh weights."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    try:
        manifest = load_manifest(path.parent / MANIFEST_NAME)
    except RepositoryError as error:
        raise ValueError(
            f"{path} needs the manifest of its member beside it, which tells what it holds: {error}"
        ) from None
    if not manifest.trained:
        raise ValueError(f"{path} holds fresh weights, which have learnt nothing")
    made = manifest.architecture
    options = NeckOptions(
        genotype=json.dumps(made.genotype) if made.genotype else "",
        modules=SinglePath.parse(made.single_path).modules if made.single_path else (),
    )
    backbone: BackboneName | None = next((name for name in get_args(BackboneName) if name == made.backbone), None)
    if backbone is None:
        raise ValueError(f"{path}: its manifest names the backbone {made.backbone!r}, which is not known")
    return DetectorConfig(
        backbone=backbone, neck=made.neck, channels=made.channels, head_convs=made.head_convs, neck_options=options
    )
