"""Where detections come from: one way to call every detector, and one loop that runs it over an annotated split.

A source takes a decoded picture and answers in pixels of that picture, so that resizing, letterboxing and the way back
are part of what is measured. `sources.py` has the project's own; `benchmarks/peers.py` has other people's detectors.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from service.engines.base import Detections
from training.data.cache import load_picture
from training.data.layout import resolve_split
from training.data.wider import PhotoAnnotation, read_annotations

Pixels = NDArray[np.uint8]


class Source(Protocol):
    """A detector at one input size.

    name: for tables, such as `d0`; long_side: of the input, in pixels; fingerprint: changes whenever the answers may
    change.
    """

    @property
    def name(self) -> str: ...

    @property
    def long_side(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, pixels: Pixels) -> Detections:
        """pixels: uint8 [h, w, 3] RGB -> faces in pixels of that picture, not rounded, any order."""
        ...


@dataclass
class Run:
    """What one source said of one split, and how long it took.

    found, sizes (width, height): by photo name; wall_seconds, cpu_seconds: one a photo, in order, of the call alone
    (decoding excluded).
    """

    found: dict[str, Detections] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    wall_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


def run_source(
    source: Source, annotations: Iterable[PhotoAnnotation], images: Path, *, warm_up: int = 3, progress: bool = True
) -> Run:
    """Run `source` over every annotated photo, one at a time. The first photo is run `warm_up` times more, untimed.

    Raises FileNotFoundError on a photo that is not there, before the detector is run on any.
    """
    photos = list(annotations)
    missing = [photo.name for photo in photos if not (images / photo.name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(photos)} annotated photos are not below {images}, such as {missing[0]!r}"
        )
    run = Run()
    label = f"{source.name} at {source.long_side}"
    for photo in tqdm(photos, desc=label, unit="photo", disable=not progress, leave=False):
        pixels = load_picture(images / photo.name)
        while warm_up > 0:
            source(pixels)
            warm_up -= 1
        wall, cpu = time.perf_counter(), time.process_time()
        found = source(pixels)
        run.wall_seconds.append(time.perf_counter() - wall)
        run.cpu_seconds.append(time.process_time() - cpu)
        run.found[photo.name] = found
        run.sizes[photo.name] = (pixels.shape[1], pixels.shape[0])
    return run


def read_split(data: Path, split: str, limit: int | None = None) -> tuple[list[PhotoAnnotation], Path]:
    """Annotations and image folder of a split in either layout; `limit` takes that many evenly spaced photos.

    Raises FileNotFoundError or ValueError that says what is missing or broken.
    """
    paths = resolve_split(data, split)
    photos = read_annotations(paths.annotations)
    if not photos:
        raise ValueError(f"{paths.annotations} lists no photo")
    if limit is not None and 0 < limit < len(photos):
        photos = [photos[int(index)] for index in np.linspace(0, len(photos) - 1, limit)]
    return photos, paths.images
