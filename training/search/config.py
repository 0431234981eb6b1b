"""The configuration of a search, and three sizes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from training.config import CropSize, OptimConfig, TrainConfig
from training.data.crops import CropConfig
from training.models.detector import DetectorConfig
from training.recipes import asfd, paper
from training.search.space import SpaceConfig


@dataclass(frozen=True)
class SearchConfig:
    """One search (paper, sections 4.2 and 5.1.3).

    space: a name of `search.spaces.SPACES`, with `options`. train: how weights are trained; its epochs are those of the
    search, counted on the weights' photos, and its neck is of no account. arch_lr: Adam's rate for the architecture,
    which stays as it is for the first `frozen` of all steps. split: photos for weights, for the architecture, and for
    the mini-validation, in proportion. temperature: of Eq. 6 at the first and at the last step, linear between.
    second_order: whether the architecture's gradient looks one weight step ahead. long_side: of the mini-validation,
    in pixels; mini_photos: how many of its photos are taken, 0 for all.
    """

    space: str = "autofae"
    options: SpaceConfig = field(default_factory=SpaceConfig)
    train: TrainConfig = field(default_factory=paper)
    arch_lr: float = 0.01
    frozen: float = 0.5
    split: tuple[int, int, int] = (9, 9, 2)
    temperature: tuple[float, float] = (5.0, 0.5)
    second_order: bool = False
    long_side: int = 640
    mini_photos: int = 0


def paper_search() -> SearchConfig:
    """The paper's: 100 epochs of its own training recipe, a ResNet-50 with 256 channels and four head convolutions."""
    return SearchConfig(
        train=replace(
            paper(), recipe="search-paper", epochs=100.0,
            model=DetectorConfig(backbone="resnet50", channels=256, head_convs=4),
        )
    )  # fmt: skip


def gpu_search() -> SearchConfig:
    """For one GPU and some ten thousand small photos: D0's size, AdamW, crops of the size that is evaluated."""
    base = asfd()
    return SearchConfig(
        train=replace(
            base, recipe="search-gpu", epochs=24.0, sizes=(CropSize(512, 24),),
            optim=replace(base.optim, warmup_steps=100),
        ),
        long_side=512,
    )  # fmt: skip


def small_search() -> SearchConfig:
    """For two CPU cores: 16 channels, 160-pixel crops, few steps; to be started from a trained backbone."""
    base = asfd()
    return SearchConfig(
        options=SpaceConfig(evaluate="sampled"),
        train=replace(
            base, recipe="search-small", epochs=0.75, sizes=(CropSize(160, 8),), model=DetectorConfig(channels=16),
            data=replace(base.data, crops=CropConfig(face=0.5, ssd=0.2)),
            optim=OptimConfig(name="adamw", lr=1.5e-3, weight_decay=0.05, warmup_steps=20, schedule="wsd",
                              decay=0.5, clip_norm=5.0),
        ),
        long_side=480,
        mini_photos=150,
    )  # fmt: skip


def smoke_search() -> SearchConfig:
    """A handful of steps on tiny crops, to see that everything runs."""
    small = small_search()
    model = DetectorConfig(channels=8)
    train = replace(small.train, recipe="search-smoke", epochs=2.0, sizes=(CropSize(64, 2),), model=model)
    return replace(small, train=train, long_side=128, mini_photos=8)


BUDGETS: dict[str, Callable[[], SearchConfig]] = {
    "smoke": smoke_search,
    "small": small_search,
    "gpu": gpu_search,
    "paper": paper_search,
}
