"""Photos to calibrate on, and one pass of a variant over an annotated split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from service.repository.manifest import Manifest
    from training.evaluation.wider import Report


def training_pictures(data: Path, count: int) -> Iterator[NDArray[np.uint8]]:
    """`count` evenly spaced photos of the training split, uint8 [h, w, 3]."""
    from training.data.cache import load_picture
    from training.data.layout import resolve_split
    from training.data.wider import read_annotations

    paths = resolve_split(data, "train")
    photos = read_annotations(paths.annotations)
    for index in np.linspace(0, len(photos) - 1, count):
        yield load_picture(paths.images / photos[int(index)].name)


def split_name(split: str, limit: int) -> str:
    """As the manifest has it. A part of a split is no split of that name: its AP is compared with nothing else."""
    return f"{split}:{limit}" if limit else split


def score(
    path: Path, variant: str, manifest: Manifest, side: int, data: Path, split: str, limit: int, threads: int = 0
) -> tuple[Report, float]:
    """(report of the WIDER protocol with face sizes, median milliseconds a photo) of one file at one long side.

    Raises ValueError where the member has no such long side.
    """
    from training.evaluation.detections import read_split, run_source
    from training.evaluation.sources import OnnxSource
    from training.evaluation.wider import evaluate

    sizes = [size for size in manifest.input_sizes if size.long_side == side]
    source = OnnxSource(path, variant, sizes, threads)
    photos, images = read_split(data, split, limit or None)
    run = run_source(source, photos, images)
    return evaluate(run.found, photos, photo_sizes=run.sizes), float(np.median(run.wall_seconds)) * 1e3
