"""One run of a table: a detector trained and evaluated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from training.config import TrainConfig
from training.data.dataset import load_training_set
from training.data.wider import PhotoAnnotation
from training.engine.distributed import World
from training.engine.loop import RunOptions, train
from training.engine.precision import autocast
from training.evaluation.detections import Source, read_split, run_source
from training.evaluation.multiscale import FACTORS, MultiPassSource, passes_of
from training.evaluation.official import read_subsets
from training.evaluation.sources import TorchSource
from training.evaluation.wider import evaluate
from training.models.detector import Detector
from training.models.genotype import AnyGenotype
from training.tables.budget import TableBudget
from training.tables.report import Result
from training.tables.rows import Row


@dataclass(frozen=True)
class Place:
    """Where runs happen. data: annotated photos; out: the table's folder; start, imagenet: weights whose backbone each
    run begins with, imagenet also a folder of `resnet18.pth` and the like; official: folder of WIDER's subsets, if
    wanted; workers: loader processes.
    """

    data: Path
    out: Path
    split: str
    dev_split: str
    cache: Path
    start: Path | None
    imagenet: Path | None
    official: Path | None
    workers: int


def config_of(row: Row, genotype: str, seed: int, budget: TableBudget, photos: int) -> TrainConfig:
    """The run's whole configuration. genotype: JSON, empty for rows without."""
    model = budget.train.model
    if row.shape is not None:
        shape = row.shape
        channels = min(shape.channels, budget.widest or shape.channels)
        model = replace(model, backbone=shape.backbone, head_convs=shape.head_convs, channels=channels)
    model = replace(model, neck=row.neck, neck_options=replace(row.options, genotype=genotype))
    epochs = budget.train.epochs if budget.images is None else budget.images / photos
    return replace(budget.train, recipe=f"{budget.train.recipe}: {row.name}", model=model, epochs=epochs, seed=seed)


def run(
    row: Row,
    genotype: AnyGenotype | None,
    seed: int,
    budget: TableBudget,
    place: Place,
    world: World,
    multi_scale: bool,
) -> Result:
    """Train one row with one seed, resuming where it was cut off, and evaluate it.

    Raises FileNotFoundError or ValueError where data or starting weights are not what they should be.
    """
    photos = load_training_set(place.data, place.split, place.cache, budget.train.data)
    config = config_of(row, genotype.model_dump_json() if genotype else "", seed, budget, len(photos))
    subsets = read_subsets(place.official) if place.official else {}
    annotated, images = read_split(place.data, place.dev_split, budget.photos or None)
    scores: dict[str, float] = {}
    parameters = 0

    def validate(model: Detector) -> dict[str, float]:
        nonlocal parameters
        parameters = sum(p.numel() for p in model.parameters())
        scores.update(_evaluate(model, row.name, config, budget.long_side, annotated, images, subsets, multi_scale))
        return scores

    folder = folder_of(row, seed, place)
    # Starting weights give the backbone alone, so that every neck begins as fresh as the others.
    imagenet = place.imagenet
    if imagenet is not None and imagenet.is_dir():
        imagenet = imagenet / f"{config.model.backbone}.pth"
    options = RunOptions(folder, place.workers, init=place.start, imagenet=imagenet, keep="backbone")
    progress = train(config, photos, options, world, validate)
    return Result(
        row=row.name, seed=seed, scores=scores, images=progress.images, seconds=progress.seconds, parameters=parameters,
        genotype=genotype.provenance.model_dump(exclude={"settings"}) if genotype else None,
    )  # fmt: skip


def folder_of(row: Row, seed: int, place: Place) -> Path:
    """A run's folder."""
    return place.out / "runs" / f"{slug(row.name)}-{seed}"


def slug(name: str) -> str:
    """A row's name as a file name."""
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def _evaluate(
    model: Detector,
    name: str,
    config: TrainConfig,
    long_side: int | None,
    photos: list[PhotoAnnotation],
    images: Path,
    subsets: dict[str, list[PhotoAnnotation]],
    multi_scale: bool,
) -> dict[str, float]:
    """AP.50, AP and recall in 0..1, and those of WIDER's subsets where they are given, such as `ap50_hard`."""
    source: Source = TorchSource(model, name, long_side or 0, "")
    if multi_scale:
        source = MultiPassSource(source, passes_of(FACTORS))
    device = next(model.parameters()).device.type
    with autocast(device, config.precision):
        found = run_source(source, photos, images, warm_up=0).found
    report = evaluate(found, photos)
    scores = {"ap50": report.ap50, "ap": report.ap, "recall50": report.recall50}
    for subset, annotated in subsets.items():
        part = evaluate(found, [photo for photo in annotated if photo.name in found])
        scores |= {f"ap50_{subset}": part.ap50, f"ap_{subset}": part.ap}
    return scores
