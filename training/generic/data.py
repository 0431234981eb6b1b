"""Pictures and boxes in COCO's format: the annotation file, a Dataset of it, and the order of batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import FiniteFloat, PositiveInt, TypeAdapter, ValidationError
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from typing_extensions import TypedDict

Key = tuple[int, bool]  # index of a picture, and whether it is mirrored
Sample = tuple[Tensor, dict[str, Tensor]]

MIN_SIDE = 1.0  # pixels; boxes with a shorter side, once cut to the picture, teach nothing


class _Image(TypedDict):
    id: int
    file_name: str
    width: PositiveInt
    height: PositiveInt


class _Annotation(TypedDict):
    image_id: int
    category_id: int
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    iscrowd: NotRequired[int]


class _Category(TypedDict):
    id: int
    name: NotRequired[str]


class _File(TypedDict):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True)
class Picture:
    """One picture with its objects.

    id: in the file; name: relative to the folder of pictures; width, height: pixels; boxes: float32 [n, 4] x1 y1 x2 y2
    in pixels of the picture; labels: int64 [n], 1 .. number of categories. Crowds are left out.
    """

    id: int
    name: str
    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Annotations:
    """An annotation file. categories: the file's ids, ascending; label k stands for `categories[k - 1]`, 0 for none."""

    pictures: tuple[Picture, ...]
    categories: tuple[int, ...]


def read_annotations(path: Path) -> Annotations:
    """Read `instances_*.json`, or any file of that form; what it has beyond pictures and boxes is passed over.

    Boxes are cut to their picture, and dropped where less than a pixel wide or high. Category ids need not be
    contiguous. Raises FileNotFoundError, and ValueError that names the entry where the file is not of that form.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: expected COCO annotations, such as instances_train2017.json")
    try:
        content = _FILE.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise ValueError(f"{path} is not in COCO's format: {place}: {first['msg']}") from None
    categories = tuple(sorted({row["id"] for row in content["categories"]}))
    label_of = {category: label for label, category in enumerate(categories, 1)}
    rows: dict[int, list[_Annotation]] = {row["id"]: [] for row in content["images"]}
    if len(rows) < len(content["images"]):
        raise ValueError(f"{path}: two pictures have the same id")
    for at, row in enumerate(content["annotations"]):
        if row["image_id"] not in rows:
            raise ValueError(f"{path}: annotation {at} is of picture {row['image_id']}, which the file does not have")
        if row["category_id"] not in label_of:
            raise ValueError(f"{path}: annotation {at} has category {row['category_id']}, which the file does not have")
        rows[row["image_id"]].append(row)
    return Annotations(tuple(_picture(row, rows[row["id"]], label_of) for row in content["images"]), categories)


_FILE: TypeAdapter[_File] = TypeAdapter(_File)


def _picture(image: _Image, rows: Sequence[_Annotation], label_of: dict[int, int]) -> Picture:
    rows = [row for row in rows if not row.get("iscrowd", 0)]
    boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
    labels = np.array([label_of[row["category_id"]] for row in rows], np.int64)
    boxes[:, 2:] += boxes[:, :2]
    limits = np.array([image["width"], image["height"]] * 2, np.float32)
    boxes = np.clip(boxes, 0, limits)
    kept = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(axis=1)
    return Picture(image["id"], image["file_name"], image["width"], image["height"], boxes[kept], labels[kept])


class CocoDataset(Dataset[Sample]):
    """Pictures by `Key`: uint8 [3, H, W] RGB, and `boxes` float32 [n, 4] with `labels` int64 [n], as torchvision's
    detectors take them. Like COCO's own tools, it pays no heed to EXIF orientation.

    Raises FileNotFoundError at once where a picture is missing, ValueError later where one is not as annotated.
    """

    def __init__(self, folder: Path, pictures: Sequence[Picture]) -> None:
        self.folder, self.pictures = folder, tuple(pictures)
        missing = [picture.name for picture in self.pictures if not (folder / picture.name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder} lacks {len(missing)} of {len(self.pictures)} pictures, as {missing[0]}")

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: Key) -> Sample:
        index, mirrored = key
        picture = self.pictures[index]
        path = self.folder / picture.name
        try:
            with Image.open(path) as opened:
                pixels = np.array(opened.convert("RGB"))
        except OSError as error:
            raise ValueError(f"{path} cannot be read as a picture: {error}") from error
        if pixels.shape[:2] != (picture.height, picture.width):
            real, said = f"{pixels.shape[1]}x{pixels.shape[0]}", f"{picture.width}x{picture.height}"
            raise ValueError(f"{path} has {real} pixels, and its annotation says {said}")
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        boxes = torch.from_numpy(picture.boxes)
        if mirrored:
            image = image.flip(2)
            boxes = torch.stack(
                (picture.width - boxes[:, 2], boxes[:, 1], picture.width - boxes[:, 0], boxes[:, 3]), dim=1
            )
        return image.contiguous(), {"boxes": boxes, "labels": torch.from_numpy(picture.labels)}


def collate(samples: Sequence[Sample]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Pictures differ in size, so that a batch stays a list."""
    return [image for image, _ in samples], [target for _, target in samples]


class BatchOrder(Sampler[list[Key]]):
    """Batches of steps `start` to `stop`, the same however often a run is cut off: a function of seed and step alone.

    Every epoch shows all pictures in a new order, mirrored by half, wide ones and tall ones in batches of their own,
    since a batch is padded to its largest sides (as torchvision's and mmdetection's recipes do). What does not fill a
    batch is left out.
    """

    def __init__(self, pictures: Sequence[Picture], batch: int, seed: int, start: int, stop: int) -> None:
        self.tall = np.array([picture.height > picture.width for picture in pictures], bool)
        self.batch, self.seed, self.start, self.stop = batch, seed, start, stop
        self.steps_per_epoch = len(pictures) // batch
        if not self.steps_per_epoch:
            raise ValueError(f"{len(pictures)} pictures with boxes do not fill a batch of {batch}")

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, skipped = divmod(self.start, self.steps_per_epoch)
        batches = itertools.chain.from_iterable(self._epoch(number) for number in itertools.count(epoch))
        return itertools.islice(batches, skipped, skipped + len(self))

    def _epoch(self, epoch: int) -> Iterable[list[Key]]:
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(self.tall))
        mirrored = random.random(len(order)) < 0.5
        groups = [order[self.tall[order] == tall] for tall in (False, True)]
        whole = [len(group) // self.batch * self.batch for group in groups]
        rest = np.concatenate([group[count:] for group, count in zip(groups, whole, strict=True)])
        full = [group[:count] for group, count in zip(groups, whole, strict=True)]
        rows = np.concatenate((*full, rest))[: self.steps_per_epoch * self.batch].reshape(-1, self.batch)
        return [[(int(i), bool(mirrored[i])) for i in row] for row in random.permutation(rows)]
