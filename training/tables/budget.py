"""How much each run of a table gets: three sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from training.config import CropSize, TrainConfig
from training.models.detector import DetectorConfig
from training.recipes import paper, paper_adamw


@dataclass(frozen=True)
class TableBudget:
    """train: of every run, whose neck each row replaces; images: crops a run, where not the recipe's epochs decide.

    long_side: of the evaluation, pixels, None: each photo's own; photos: that many evenly spaced ones of the split, 0
    for all; widest: channels that no row exceeds, None: as many as it has. search: the name of the search budget
    (`search.config.BUDGETS`) that searched rows get, with its seeds; seeds: runs a row.
    """

    name: str
    train: TrainConfig
    images: int | None
    long_side: int | None
    photos: int
    search: str
    search_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    widest: int | None = None


def paper_budget() -> TableBudget:
    """Section 5.1.2: 50 epochs, the rate a tenth after 30 and 40 of them; ResNet-50, 256 channels, four head
    convolutions, as RetinaNet has them."""
    base = paper()
    train = replace(
        base, recipe="ablation", epochs=50.0, optim=replace(base.optim, milestones=(0.6, 0.8)),
        model=DetectorConfig(backbone="resnet50", channels=256, head_convs=4),
    )  # fmt: skip
    return TableBudget("paper", train, None, None, 0, "paper", (0, 1, 2), (0, 1, 2))


def small_budget() -> TableBudget:
    """For two CPU cores, from a trained backbone: D0's size, AdamW, 160 steps of eight crops, a sixth of the photos.

    Differences between necks are differences after so little training, and no more: deep ones learn slower. Crops are
    256 pixels, since those of 160, whose coarsest map has two cells a side, leave norms with statistics that do not
    carry over to whole photos.
    """
    base = paper_adamw()
    train = replace(
        base, recipe="ablation-small", sizes=(CropSize(256, 8),),
        optim=replace(base.optim, warmup_steps=10, ema=0.97),
    )  # fmt: skip
    return TableBudget("small", train, 1280, 480, 110, "small", (0,), (0,))


def smoke_budget() -> TableBudget:
    """Two steps on tiny crops, to see that everything runs."""
    small = small_budget()
    train = replace(
        small.train, recipe="ablation-smoke", sizes=(CropSize(64, 2),), model=DetectorConfig(channels=8)
    )  # fmt: skip
    return TableBudget("smoke", train, 4, 128, 4, "smoke", (0,), (0,), widest=8)


BUDGETS: dict[str, Callable[[], TableBudget]] = {
    "smoke": smoke_budget,
    "small": small_budget,
    "paper": paper_budget,
}
