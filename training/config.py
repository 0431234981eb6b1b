"""The typed configuration of one training run. Recipes (`training.recipes`) are functions that return one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from training.data.dataset import DataConfig
from training.data.photometric import PhotometricConfig
from training.data.rotation import RotationConfig
from training.engine.precision import Precision
from training.models.detector import DetectorConfig
from training.models.distillation import DistillConfig
from training.models.losses import LossConfig


@dataclass(frozen=True)
class CropSize:
    """Square crops of `side` pixels in batches of `batch` a rank, drawn in `share` of the steps."""

    side: int
    batch: int
    share: float = 1.0


@dataclass(frozen=True)
class OptimConfig:
    """schedule: `multistep` drops tenfold at `milestones` (fractions of all steps); `wsd` keeps the rate until the last
    `decay` of all steps and then goes linearly to zero, so that a run can be prolonged before its decay.
    ema: decay of the weights' moving average; 0 keeps none.
    lr_images: pictures a step, over all ranks, that `lr` is meant for: steps of more get a rate higher in proportion,
    steps of fewer `lr` itself (`training.engine.optim.for_ranks`); None: `lr` for steps of any size.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_steps: int = 500
    schedule: Literal["multistep", "wsd"] = "multistep"
    milestones: tuple[float, ...] = (0.5, 100 / 120)
    decay: float = 0.4
    clip_norm: float = 10.0
    ema: float = 0.999
    lr_images: int | None = None


@dataclass(frozen=True)
class TrainConfig:
    """One run. precision `bf16` autocasts convolutions, where the device is fast at it (`training.engine.precision`);
    losses stay in float32.

    distill: what a teacher adds to the loss; None: no teacher.
    """

    recipe: str
    model: DetectorConfig = field(default_factory=DetectorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    photometric: PhotometricConfig = field(default_factory=PhotometricConfig)
    rotation: RotationConfig = field(default_factory=RotationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sizes: tuple[CropSize, ...] = (CropSize(640, 32),)
    epochs: float = 120.0
    precision: Precision = "bf16"
    seed: int = 0
    distill: DistillConfig | None = None

    def images_a_step(self, ranks: int) -> float:
        """Pictures of a step, over all `ranks` processes; the mean where batches of several sizes take turns."""
        total = sum(size.share for size in self.sizes)
        return ranks * sum(size.batch * size.share / total for size in self.sizes)
