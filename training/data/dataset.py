"""Training samples: a crop, its faces and its ignore regions, reproducible from (seed, epoch, index) alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from training.data.cache import PictureCache, build_cache
from training.data.crops import CropConfig, Window, boxes_in_window, choose_window
from training.data.layout import resolve_split
from training.data.wider import PhotoAnnotation, read_annotations
from training.models.losses import Targets

NEGATIVES = "negatives"
FILL = 110  # a mid grey near the mean of photographs


@dataclass(frozen=True)
class DataConfig:
    """What a crop may hold, and which photos there are.

    Faces smaller than `min_face` output pixels, and those past `max_faces`, are ignored. honour_ignore: whether the
    ignore regions of the annotations are left out of the loss, or are background like the rest.
    crowd_share, machine_share: sampling weight of photos with more than 100 faces or ignore regions, and of photos
    without human labels (`pseudo` in the split's origin file). fraction: of the photos, a fixed random choice;
    leave_out: sources, which are the first folder of a photo's name, or `negatives`.
    """

    crops: CropConfig = field(default_factory=CropConfig)
    min_face: float = 5.0
    max_faces: int = 60
    flip: float = 0.5
    honour_ignore: bool = True
    crowd_share: float = 1.0
    machine_share: float = 1.0
    fraction: float = 1.0
    leave_out: tuple[str, ...] = ()


class SampleKey(NamedTuple):
    """Names one sample of the endless stream: which picture, at which output size, by which random seed."""

    photo: int
    size: int
    seed: tuple[int, int, int]


class Sample(NamedTuple):
    """image: uint8 [3, S, S]; targets in its pixels."""

    image: Tensor
    targets: Targets


class Plan(NamedTuple):
    """What is drawn for one sample: where to cut, whether to mirror, and the targets that belong to the result."""

    window: Window
    flip: bool
    targets: Targets


class CropDataset(Dataset[Sample]):
    """Annotated photos (and photos without faces), cut by `SampleKey`. origins: where a photo's labels come from;
    only: which photos are drawn from at all, bool [photos], where not all are."""

    def __init__(
        self,
        photos: Sequence[PhotoAnnotation],
        cache: PictureCache,
        config: DataConfig,
        origins: Mapping[str, str] | None = None,
        only: NDArray[np.bool_] | None = None,
    ) -> None:
        self.photos, self.cache, self.config, self.origins = photos, cache, config, origins or {}
        self.only = only

    def __len__(self) -> int:
        return len(self.photos)

    def weights(self) -> NDArray[np.float64]:
        """Sampling weight of each photo: [len(self)]."""
        crowded = np.array([len(photo.boxes) > 100 for photo in self.photos])
        machine = np.array([self.origins.get(photo.name) == "pseudo" for photo in self.photos])
        weights = np.where(crowded, self.config.crowd_share, 1.0) * np.where(machine, self.config.machine_share, 1.0)
        weights = weights * [self._wanted(photo.name) for photo in self.photos]
        if self.only is not None:
            weights = weights * self.only
        if not weights.any():
            raise ValueError("the data settings leave no photo to train on")
        return weights

    def _wanted(self, name: str) -> bool:
        source = name.partition("/")[0] if "/" in name else ""
        drawn = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
        return source not in self.config.leave_out and drawn < self.config.fraction

    def __getitem__(self, key: SampleKey) -> Sample:
        plan = self.plan(key)
        image = cut(self.cache[key.photo], plan.window, key.size)
        if plan.flip:
            image = image[:, ::-1]
        return Sample(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), plan.targets)

    def plan(self, key: SampleKey) -> Plan:
        """Everything about a sample but its pixels; the order of the draws is part of what a seed means."""
        rng = np.random.default_rng(key.seed)
        photo = self.photos[key.photo]
        height, width = self.cache.shape(key.photo)
        window = choose_window(width, height, photo.boxes[~photo.ignore], key.size, self.config.crops, rng)
        faces, ignored = self._targets(photo, window, key.size, rng)
        flip = bool(rng.random() < self.config.flip)
        if flip:
            faces, ignored = (_mirror(b, key.size) for b in (faces, ignored))
        return Plan(window, flip, Targets(torch.from_numpy(faces).float(), torch.from_numpy(ignored).float()))

    def _targets(
        self, photo: PhotoAnnotation, window: Window, size: int, rng: Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        boxes, inside = boxes_in_window(photo.boxes, window, size)
        sides = boxes[:, 2:] - boxes[:, :2]
        visible: NDArray[np.bool_] = np.asarray((sides > 1).all(axis=1))
        large = sides.max(axis=1, initial=0.0) >= self.config.min_face
        learn = ~photo.ignore & inside & visible & large
        chosen = np.flatnonzero(learn)
        if len(chosen) > self.config.max_faces:
            chosen = rng.choice(chosen, self.config.max_faces, replace=False)
        rest = visible.copy()
        rest[chosen] = False
        if not self.config.honour_ignore:
            rest &= ~photo.ignore
        return boxes[chosen], boxes[rest]


def _mirror(boxes: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return np.stack((size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]), axis=1)


class Placement(NamedTuple):
    """How a window meets its picture. piece: first row, row behind the last, first column, column behind the last of
    the pixels needed; box: x0 y0 x1 y1 within the piece, which fills left, top, right, bottom of the output."""

    piece: tuple[int, int, int, int]
    box: tuple[float, float, float, float]
    target: tuple[int, int, int, int]


def place(height: int, width: int, window: Window, size: int) -> Placement | None:
    """Where the picture's part of a window lies, there and in the output; None where it is less than a pixel."""
    x0, y0 = max(window.x, 0.0), max(window.y, 0.0)
    x1, y1 = min(window.x + window.side, float(width)), min(window.y + window.side, float(height))
    left, top = round((x0 - window.x) * window.scale), round((y0 - window.y) * window.scale)
    right = min(round((x1 - window.x) * window.scale), size)
    bottom = min(round((y1 - window.y) * window.scale), size)
    if right <= left or bottom <= top:
        return None
    cx, cy = int(x0), int(y0)
    rows, cols = min(int(np.ceil(y1)), height), min(int(np.ceil(x1)), width)
    box = (x0 - cx, y0 - cy, min(x1 - cx, cols - cx), min(y1 - cy, rows - cy))
    return Placement((cy, rows, cx, cols), box, (left, top, right, bottom))


def cut(pixels: NDArray[np.uint8], window: Window, size: int) -> NDArray[np.uint8]:
    """The window as uint8 [size, size, 3]; what lies beyond the picture is grey. Shrinking is antialiased."""
    out = np.full((size, size, 3), FILL, dtype=np.uint8)
    height, width = pixels.shape[:2]
    placement = place(height, width, window, size)
    if placement is None:
        return out
    first, last, start, stop = placement.piece
    left, top, right, bottom = placement.target
    # Only the rows and columns needed are copied out of the map.
    piece = np.ascontiguousarray(pixels[first:last, start:stop])
    resized = Image.fromarray(piece).resize(
        (right - left, bottom - top), Image.Resampling.BILINEAR, box=placement.box, reducing_gap=2.0
    )
    out[top:bottom, left:right] = np.asarray(resized)
    return out


class StreamSampler(Sampler[list[SampleKey]]):
    """Endless batches, the same on every run: batch k of rank r depends on (seed, k, r) alone, so resuming is exact.

    sizes: (output size, batch size, share) - each batch draws one, so that larger crops come in smaller batches.
    """

    def __init__(
        self,
        weights: NDArray[np.float64],
        sizes: Sequence[tuple[int, int, float]],
        seed: int,
        start: int,
        stop: int,
        rank: int = 0,
    ) -> None:
        self._cumulative = np.cumsum(weights / weights.sum())
        self._sizes, self._seed, self._rank = sizes, seed, rank
        self._start, self._stop = start, stop

    def __iter__(self) -> Iterator[list[SampleKey]]:
        shares = np.array([share for _, _, share in self._sizes])
        for step in range(self._start, self._stop):
            # All ranks draw the same size, or the slower would hold up the rest.
            pick = np.random.default_rng((self._seed, step)).choice(len(shares), p=shares / shares.sum())
            size, batch, _ = self._sizes[pick]
            rng = np.random.default_rng((self._seed, step, self._rank))
            drawn = np.searchsorted(self._cumulative, rng.random(batch))
            index = np.minimum(drawn, len(self._cumulative) - 1)
            seeds = rng.integers(2**31, size=batch)
            yield [SampleKey(int(i), size, (self._seed, step, int(s))) for i, s in zip(index, seeds, strict=True)]


def collate(samples: Sequence[Sample]) -> tuple[Tensor, list[Targets]]:
    """uint8 [N, 3, S, S] and the targets of each picture."""
    return torch.stack([s.image for s in samples]), [s.targets for s in samples]


def list_photos(root: Path, split: str) -> tuple[list[PhotoAnnotation], list[Path]]:
    """The split's photos and, where `root/negatives/images` is, those without a face; and the file of each.

    Raises FileNotFoundError where the split or a picture is missing.
    """
    paths = resolve_split(root, split)
    photos = read_annotations(paths.annotations)
    files = [paths.images / photo.name for photo in photos]
    empty = np.zeros((0, 4)), np.zeros(0, dtype=bool)
    for file in sorted((root / NEGATIVES / "images").rglob("*.*")):
        photos.append(PhotoAnnotation(f"{NEGATIVES}/{file.name}", *empty))
        files.append(file)
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} pictures of {paths.annotations} are missing, {missing[0]} the first")
    return photos, files


def load_training_set(root: Path, split: str, cache: Path, config: DataConfig) -> CropDataset:
    """All photos of `list_photos`, decoded into the folder `cache` where they are not there yet."""
    photos, files = list_photos(root, split)
    origins = resolve_split(root, split).annotations.with_name(f"{split}_origin.json")
    known = json.loads(origins.read_text(encoding="utf-8")) if origins.is_file() else {}
    return CropDataset(photos, build_cache(files, cache), config, known)
