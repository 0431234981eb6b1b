"""A small detector with lively scores, and its checkpoint: what the exporter meets, in seconds instead of hours."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from training.config import TrainConfig
from training.engine.checkpoint import as_plain, save
from training.models.detector import Detector, DetectorConfig, build_detector, normalize

CONFIG = DetectorConfig(channels=16)


@pytest.fixture(scope="session")
def detector(crowd: npt.NDArray[np.uint8]) -> Detector:
    return lively(CONFIG, crowd)


@pytest.fixture(scope="session")
def quality_detector(crowd: npt.NDArray[np.uint8]) -> Detector:
    """The same with a head that predicts each box's IoU."""
    return lively(dataclasses.replace(CONFIG, iou_branch=True), crowd)


def lively(config: DetectorConfig, crowd: npt.NDArray[np.uint8]) -> Detector:
    """Random weights; norms see the crowd once, and the predictors are scaled so that scores spread over 0..1."""
    torch.manual_seed(7)
    built = build_detector(config)
    pixels = torch.from_numpy(np.ascontiguousarray(crowd[:512, :512])).permute(2, 0, 1)[None]
    with torch.no_grad():
        built.train()
        for module in built.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        built(normalize(pixels))
        torch.nn.init.normal_(built.head.cls_logits.weight, std=0.2)
        torch.nn.init.normal_(built.head.box_deltas.weight, std=0.05)
        assert built.head.cls_logits.bias is not None
        torch.nn.init.constant_(built.head.cls_logits.bias, -2.0)
        if built.head.box_quality is not None:
            torch.nn.init.normal_(built.head.box_quality.weight, std=0.2)
    return built.eval()


@pytest.fixture(scope="session")
def checkpoint(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`detector` as `python -m training train` would have saved it."""
    path = tmp_path_factory.mktemp("run") / "last.pt"
    detector_checkpoint(detector, path)
    return path


def detector_checkpoint(detector: Detector, path: Path) -> None:
    """Save a detector of `CONFIG` with some history."""
    config = dataclasses.replace(TrainConfig(recipe="scratch-cpu"), model=CONFIG)
    content = {
        "ema": detector.state_dict(),
        "config": as_plain(config),
        "progress": {"images": 1234, "seconds": 360.0},
    }
    save(path, content)
