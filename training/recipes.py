"""Named recipes: functions that return a complete `TrainConfig`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from training.config import CropSize, OptimConfig, TrainConfig
from training.data.crops import CropConfig
from training.data.dataset import DataConfig
from training.data.photometric import PhotometricConfig
from training.models.losses import LossConfig
from training.models.matching import MatchConfig


def paper() -> TrainConfig:
    """The paper's numbers (5.1.1, 5.1.2): SGD 0.01 per 32 pictures, tenfold drops at epochs 60 and 100 of 120.

    640-pixel crops; the crop mix (2/5 data-anchor sampling, 3/5 SSD-style) is that of the authors' earlier release.
    """
    return TrainConfig(
        recipe="paper",
        data=DataConfig(crops=CropConfig(face=0.0, anchor=0.4, ssd=0.6), max_faces=1000, min_face=1.0),
        photometric=PhotometricConfig(gray=0.0, blur=0.0, noise=0.0),
    )


def paper_adamw() -> TrainConfig:
    """`paper` with AdamW and a linear decay, for comparisons of a few hundred steps, in which SGD hardly starts."""
    base = paper()
    return replace(
        base,
        recipe="paper-adamw",
        optim=replace(base.optim, name="adamw", lr=1.2e-3, weight_decay=0.05, clip_norm=5.0, schedule="wsd", decay=0.6),
    )


def scratch() -> TrainConfig:
    """From scratch on a small set, with a GPU: AdamW, GIoU, three best anchors a face, stronger augmentation."""
    return TrainConfig(
        recipe="scratch",
        loss=LossConfig(box="giou", box_weight=2.0, match=MatchConfig(best=3)),
        data=DataConfig(crowd_share=0.35),
        optim=OptimConfig(name="adamw", lr=1.5e-3, weight_decay=0.05, schedule="wsd", clip_norm=5.0),
        sizes=(CropSize(512, 32, 0.6), CropSize(640, 20, 0.4)),
        epochs=100.0,
    )


def scratch_cpu() -> TrainConfig:
    """`scratch` for a few CPU cores: mostly 256-pixel crops, larger ones now and then for large faces."""
    base = scratch()
    return TrainConfig(
        recipe="scratch-cpu",
        loss=base.loss,
        data=base.data,
        optim=OptimConfig(
            name="adamw", lr=1.2e-3, weight_decay=0.05, warmup_steps=150, schedule="wsd", clip_norm=5.0, ema=0.998
        ),
        sizes=(CropSize(256, 16, 0.75), CropSize(416, 6, 0.25)),
        epochs=8.0,
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "paper": paper,
    "paper-adamw": paper_adamw,
    "scratch": scratch,
    "scratch-cpu": scratch_cpu,
}
