"""Where detections come from: one way to call every detector, and one loop that runs it over an annotated split.

A source takes a decoded picture and answers in pixels of that picture, so that resizing, letterboxing and the way back
are part of what is measured. `sources.py` has the project's own; `export/peers.py` has other people's detectors.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags
from tqdm import tqdm

from service.engines.base import Detections
from training.data.cache import load_picture, opened
from training.data.layout import resolve_split
from training.data.wider import PhotoAnnotation, read_annotations

Pixels = NDArray[np.uint8]


class Source(Protocol):
    """A detector at one input size.

    name: for tables, such as `d0`; long_side: of the input, in pixels, 0 where every picture keeps its own size;
    fingerprint: changes whenever the answers may change.
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


class Named(Protocol):
    """An annotated photo, as far as running a detector is concerned. name: its path below the image folder."""

    @property
    def name(self) -> str: ...


class Store(Protocol):
    """Keeps what was found, photo by photo, so that a run that was cut off goes on; `submission.py` has one."""

    def get(self, name: str) -> Detections | None:
        """What was found in this photo before, or None."""
        ...

    def put(self, name: str, found: Detections) -> None: ...


@dataclass
class Run:
    """What one source said of one split, and how long it took.

    found, sizes (width, height): by photo name; wall_seconds, cpu_seconds: one a photo that was run, in order, of the
    call alone (decoding excluded). Photos that came from a store have none.
    """

    found: dict[str, Detections] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    wall_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


def run_source(
    source: Source,
    annotations: Iterable[Named],
    images: Path,
    *,
    warm_up: int = 3,
    progress: bool = True,
    store: Store | None = None,
) -> Run:
    """Run `source` over every annotated photo, one at a time. The first photo is run `warm_up` times more, untimed.

    store: photos that it knows are not run again, and what is found in the others is put there at once.
    Raises FileNotFoundError on a photo that is not there, before the detector is run on any.
    """
    photos = list(annotations)
    missing = [photo.name for photo in photos if not (images / photo.name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(photos)} annotated photos are not below {images}, such as {missing[0]!r}"
        )
    run = Run()
    for photo in tqdm(photos, desc=title_of(source), unit="photo", disable=not progress, leave=False):
        known = store.get(photo.name) if store is not None else None
        if known is not None:
            run.found[photo.name], run.sizes[photo.name] = known, upright_size(images / photo.name)
            continue
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
        if store is not None:
            store.put(photo.name, found)
    return run


def title_of(source: Source) -> str:
    """`d0 at 640`, or `d0 at own size`."""
    return f"{source.name} at {source.long_side or 'own size'}"


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of a picture by its header, after its EXIF orientation, as `load_picture` decodes it."""
    with opened(path) as image:
        width, height = image.size
        # Orientations 5 to 8 lie on their side.
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def check_different(where: Path, photos: Iterable[Named]) -> None:
    """Raises ValueError that names `where` if it lists a photo twice."""
    name, times = Counter(photo.name for photo in photos).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{where} lists {name!r} {times} times; a photo must be annotated once")


def read_split(data: Path, split: str, limit: int | None = None) -> tuple[list[PhotoAnnotation], Path]:
    """Annotations and image folder of a split in either layout; `limit` takes that many evenly spaced photos.

    Raises FileNotFoundError or ValueError that says what is missing or broken.
    """
    paths = resolve_split(data, split)
    photos = read_annotations(paths.annotations)
    if not photos:
        raise ValueError(f"{paths.annotations} lists no photo")
    check_different(paths.annotations, photos)
    if limit is not None and 0 < limit < len(photos):
        photos = [photos[int(index)] for index in np.linspace(0, len(photos) - 1, limit)]
    return photos, paths.images
