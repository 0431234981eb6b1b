"""One run of an ablation: a recipe cut down to a budget, trained, evaluated, and removed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from training.ablation.changes import BASE, Change
from training.ablation.table import Budget, Result
from training.config import CropSize, TrainConfig
from training.data.dataset import CropDataset
from training.engine.cpu import prepare_cpu
from training.engine.distributed import world as join
from training.engine.loop import RunOptions, train
from training.engine.precision import autocast
from training.engine.teacher import taught_by
from training.engine.validate import score_split
from training.engine.warm_start import Keep
from training.family import member_config
from training.models.detector import Detector
from training.recipes import RECIPES


@dataclass(frozen=True)
class Place:
    """Where runs happen. data: annotated photos; out: the ablation's folder; start: weights that every run begins with;
    threads: of the network, 0 for torch's default; workers: loader processes; teacher: of rows that need one."""

    data: Path
    out: Path
    start: Path | None
    device: str
    threads: int
    workers: int
    teacher: Path | None = None


def budgeted(config: TrainConfig, budget: Budget, photos: int) -> TrainConfig:
    """`config` cut down to the budget's crops: one crop size, warm-up over a tenth of the steps.

    SGD's rate is per 32 pictures in the paper; it follows the batch by the square root, since few steps need more than
    the linear rule gives.
    """
    steps = max(1, budget.images // budget.batch)
    optim = config.optim
    rate = optim.lr * (budget.batch / 32) ** 0.5 if optim.name == "sgd" else optim.lr
    warmup, ema = min(optim.warmup_steps, steps // 10), min(optim.ema, 0.99)
    optim = replace(optim, lr=rate, lr_images=None, warmup_steps=warmup, ema=ema)
    sizes = (CropSize(budget.side, budget.batch),)
    return replace(config, sizes=sizes, epochs=budget.images / photos, optim=optim)


def changes_nothing(change: Change, budget: Budget, photos: CropDataset) -> bool:
    """Whether a row equals the base, by its settings or because no photo has the sources that it leaves out."""
    base = RECIPES[budget.base]()
    changed = change.apply(base)
    if change.name == BASE:
        return False
    if changed == base:
        return True
    if changed.data.leave_out == base.data.leave_out:
        return False
    weights = [
        CropDataset(photos.photos, photos.cache, c.data, photos.origins).weights() for c in (base, changed)
    ]  # fmt: skip
    return bool((weights[0] == weights[1]).all())


def run(change: Change, seed: int, photos: CropDataset, budget: Budget, place: Place) -> Result:
    """Train one row with one seed and evaluate it. What it leaves in its folder is `discard`'s to remove.

    Raises ValueError where the change cannot be made, such as another head on weights that keep theirs.
    """
    plain = replace(RECIPES[budget.base](), model=member_config(budget.member))
    config = budgeted(change.apply(plain), budget, len(photos))
    config = replace(config, recipe=f"{budget.base} + {change.name}", seed=seed)
    teacher = place.teacher if change.taught else None
    if teacher:
        config = taught_by(config, teacher)
    prepare_cpu(place.threads)
    scores: dict[str, float] = {}

    def validate(model: Detector) -> dict[str, float]:
        # Evaluated as it was trained: on CPUs that can, bfloat16 halves the time.
        with autocast(world.device.type, config.precision):
            scores.update(score_split(model, place.data, budget.split, budget.long_side, budget.photos))
        return scores

    mine = CropDataset(photos.photos, photos.cache, config.data, photos.origins)
    folder = _folder(change, seed, place)
    folder.mkdir(parents=True, exist_ok=True)
    with join(place.device) as world:
        keep: Keep = "all" if budget.keep_head else "body"
        options = RunOptions(folder, place.workers, init=place.start, keep=keep, teacher=teacher)
        progress = train(config, mine, options, world, validate)
    return Result(
        row=change.name, about=change.about, kind=change.kind, seed=seed, images=progress.images,
        seconds=progress.seconds, **scores,
    )  # fmt: skip


def discard(change: Change, seed: int, place: Place) -> None:
    """Remove a run's folder, once its result is kept."""
    shutil.rmtree(_folder(change, seed, place), ignore_errors=True)


def _folder(change: Change, seed: int, place: Place) -> Path:
    return place.out / f"{change.name}-{seed}"
