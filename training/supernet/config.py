"""The configuration of a supernet's training, four sizes of it, and its schedule of widths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from training.config import CropSize, OptimConfig, TrainConfig
from training.recipes import asfd, paper
from training.search.config import small_search
from training.supernet.path import PathSpace, SinglePath


@dataclass(frozen=True)
class SupernetConfig:
    """One supernet (paper, section 4.3.1).

    train: how weights are trained; its epochs are those of the whole supernet, and its model is of no account.
    genotype: JSON of the AutoFAE that is stacked. warmup: share of all steps at maximal width; shrink: share in which
    the narrower widths are added, one after another, in descending order, the first right after the warm-up.
    split: photos to train on, and kept for the evaluation of paths, in proportion. long_side: of that evaluation, in
    pixels; mini_photos: how many of its photos are taken, 0 for all.
    """

    space: PathSpace = field(default_factory=PathSpace)
    train: TrainConfig = field(default_factory=paper)
    genotype: str = ""
    warmup: float = 0.5
    shrink: float = 0.25
    split: tuple[int, int] = (18, 2)
    long_side: int = 640
    mini_photos: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= 1 or not 0 <= self.shrink <= 1 - self.warmup:
            raise ValueError("warmup and shrink are shares of all steps, and make 1 at most together")


def widths_at(step: int, steps: int, config: SupernetConfig) -> tuple[int, ...]:
    """Widths that step `step` of `steps` may draw, ascending: the largest alone, then more in descending order."""
    narrower = len(config.space.channels) - 1
    starts = (round(steps * (config.warmup + config.shrink * k / narrower)) for k in range(narrower))
    return config.space.channels[narrower - sum(step >= start for start in starts) :]


def path_at(step: int, steps: int, config: SupernetConfig) -> SinglePath:
    """The path of a step: uniform over its widths and over everything else, the same in every process."""
    random = Random(f"{config.train.seed}/{step}")
    return config.space.draw(random, widths_at(step, steps, config))


def sorts_before(step: int, steps: int, config: SupernetConfig) -> bool:
    """Whether channels are sorted by importance before this step: once, before the first that may be narrow."""
    narrow = len(widths_at(step, steps, config)) > 1
    return narrow and (step == 0 or len(widths_at(step - 1, steps, config)) == 1)


def paper_supernet() -> SupernetConfig:
    """The paper's space and training recipe."""
    return SupernetConfig(train=replace(paper(), recipe="supernet-paper"))


def gpu_supernet() -> SupernetConfig:
    """For one GPU and some ten thousand small photos: three backbones, AdamW, crops of the size evaluated."""
    base = asfd()
    return SupernetConfig(
        space=PathSpace(backbones=("resnet18", "resnet34", "resnet50")),
        train=replace(base, recipe="supernet-gpu", epochs=40.0, sizes=(CropSize(512, 20),)),
        long_side=512,
    )


def small_supernet() -> SupernetConfig:
    """For a CPU: one backbone, to be started from a trained one, two modules, up to 64 channels, small crops."""
    base = small_search().train
    return SupernetConfig(
        space=PathSpace(backbones=("resnet18",), max_modules=2, max_head_convs=3, channels=(16, 32, 48, 64)),
        train=replace(
            base, recipe="supernet-small", epochs=1.0, sizes=(CropSize(192, 8),),
            optim=OptimConfig(name="adamw", lr=1.2e-3, weight_decay=0.05, warmup_steps=50, schedule="wsd",
                              decay=0.4, clip_norm=5.0),
        ),
        long_side=480,
        mini_photos=60,
    )  # fmt: skip


def smoke_supernet() -> SupernetConfig:
    """A handful of steps on tiny crops, to see that everything runs."""
    small = small_supernet()
    return replace(
        small, space=PathSpace(backbones=("resnet18",), max_modules=2, max_head_convs=2, channels=(8, 12, 16)),
        train=replace(small.train, recipe="supernet-smoke", epochs=2.0, sizes=(CropSize(64, 2),)),
        long_side=128, mini_photos=8,
    )  # fmt: skip


BUDGETS: dict[str, Callable[[], SupernetConfig]] = {
    "smoke": smoke_supernet,
    "small": small_supernet,
    "gpu": gpu_supernet,
    "paper": paper_supernet,
}
