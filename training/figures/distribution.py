"""Figure 2 (b) and (c): cumulative distributions of the relative size of boxes and of the number of boxes a picture.

The paper gives percentages but no definition: 51 % of COCO's objects lie below 0.11, 95 % of WIDER Face's below 0.11
and 55 % of them below 0.02. Relative size is taken here as SNIP (Singh and Davis, CVPR 2018) has it, `sqrt(box area /
picture area)`. On WIDER Face's train split `python -m training figure distribution --relative relative_boxes.npz:train`
gives 94.7 % below 0.11 and 48.9 % below 0.02: the first is the paper's, the second is not.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.data.layout import resolve_split
from training.data.wider import read_annotations
from training.evaluation.detections import upright_size
from training.figures.drawing import line_style, new_figure, read_mapping, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFINITION = "sqrt(box area / picture area)"
SIZE_MARKS = (0.02, 0.11)
COUNT_MARKS = (10, 30, 150)
PERCENTS = (51, 55, 95)  # of boxes, which the paper names


@dataclass(frozen=True)
class Boxes:
    """What one data set looks like. sizes: relative size of every box with an area, float64 [n]; counts: number of
    these boxes in every picture, those without any among them, int64 [pictures]."""

    name: str
    sizes: NDArray[np.float64]
    counts: NDArray[np.int64]


def read_all(wider: Sequence[str], coco: Sequence[str], relative: Sequence[str]) -> list[Boxes]:
    """Read the data sets that the command's options name, each as `[NAME=]...`.

    wider: `DIR:split`; coco: `FILE`; relative: `FILE.npz:split`.
    Raises FileNotFoundError or ValueError that names what is missing or broken.
    """
    found: list[Boxes] = []
    for specs, read in ((relative, _relative), (wider, _wider), (coco, _coco)):
        for spec in specs:
            name, equals, rest = spec.partition("=")
            found.append(read(rest, name) if equals else read(spec, ""))
    if not found:
        raise ValueError("nothing to draw: give at least one of --wider, --coco and --relative")
    for one in found:
        if not one.sizes.size:
            raise ValueError(f"{one.name}: no box with an area")
    return found


def _split_of(spec: str, option: str) -> tuple[Path, str]:
    where, colon, split = spec.rpartition(":")
    if not colon or not where or not split:
        raise ValueError(f"--{option} {spec}: expected a path, a colon and a split, such as ../shared/data/faces:dev")
    return Path(where), split


def _wider(spec: str, name: str) -> Boxes:
    """A WIDER-layout split; only the pictures' headers are read. Regions marked invalid are no faces."""
    root, split = _split_of(spec, "wider")
    paths = resolve_split(root, split)
    sizes, counts = [np.zeros(0)], []
    for photo in tqdm(read_annotations(paths.annotations), desc=f"{root.name} {split}", unit="photo", leave=False):
        boxes = photo.boxes[~photo.ignore]
        counts.append(len(boxes))
        if len(boxes):
            width, height = upright_size(paths.images / photo.name)
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
            sizes.append(np.sqrt(areas / (width * height)))
    return Boxes(name or f"{root.name} {split}", np.concatenate(sizes), np.array(counts, dtype=np.int64))


def _coco(spec: str, name: str) -> Boxes:
    """A COCO-format annotation file. Crowd regions (`iscrowd`) stand for several objects and are left out."""
    path = Path(spec)
    content = read_mapping(path, "COCO annotations, such as instances_val2017.json")
    try:
        pictures = {row["id"]: (at, float(row["width"] * row["height"])) for at, row in enumerate(content["images"])}
        rows = [row for row in content["annotations"] if not row.get("iscrowd", 0)]
        boxes = np.array([row["bbox"][2:4] for row in rows], dtype=np.float64).reshape(-1, 2)
        places = np.array([pictures[row["image_id"]] for row in rows], dtype=np.float64).reshape(-1, 2)
        if not (np.isfinite(boxes).all() and np.isfinite(places).all() and (places[:, 1] > 0).all()):
            raise ValueError("a box or its picture has no size in numbers")
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{path}: expected `images` with id, width and height and `annotations` with image_id and bbox; "
            f"{type(error).__name__}: {error}"
        ) from None
    kept = (boxes > 0).all(axis=1)
    sizes = np.sqrt(boxes[kept].prod(axis=1) / places[kept, 1])
    counts = np.bincount(places[kept, 0].astype(np.int64), minlength=len(pictures))
    return Boxes(name or path.stem, sizes, counts)


def _relative(spec: str, name: str) -> Boxes:
    """Boxes over their pictures, `{split}_wh` [n, 2], with the picture's number `{split}_image` [n] and how many
    pictures there are, `{split}_images`. Whether a box is marked invalid is not in such a file: all are taken."""
    path, split = _split_of(spec, "relative")
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: expected an .npz file of relative boxes")
    try:
        with np.load(path, allow_pickle=False) as saved:
            wh = saved[f"{split}_wh"].astype(np.float64).reshape(-1, 2)
            image = saved[f"{split}_image"].astype(np.int64)
            pictures = int(saved[f"{split}_images"])
    except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} has no boxes of a split {split!r}: {error}") from None
    if image.shape != (len(wh),) or not np.isfinite(wh).all() or not ((image >= 0) & (image < pictures)).all():
        raise ValueError(f"{path}: each box of {split!r} needs width, height and the number of one of the pictures")
    kept = (wh > 0).all(axis=1)
    counts = np.bincount(image[kept], minlength=pictures)
    return Boxes(name or f"{path.parent.name} {split}", np.sqrt(wh[kept].prod(axis=1)), counts)


def distribution_numbers(sets: Sequence[Boxes]) -> dict[str, Any]:
    """Percentages of boxes below the paper's marks, and of pictures with more boxes than its marks."""
    rows = []
    for one in sets:
        rows.append(
            {
                "name": one.name,
                "pictures": len(one.counts),
                "boxes": int(one.sizes.size),
                "percent_of_boxes_below": {f"{mark:g}": 100 * float((one.sizes < mark).mean()) for mark in SIZE_MARKS},
                "size_below_which_percent_of_boxes_lie": {
                    str(percent): float(np.quantile(one.sizes, percent / 100)) for percent in PERCENTS
                },
                "percent_of_pictures_with_more_boxes_than": {
                    str(mark): 100 * float((one.counts > mark).mean()) for mark in COUNT_MARKS
                },
            }
        )
    return {"relative_size": DEFINITION, "rows": rows}


def steps(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The empirical distribution function: each value once, rising, and the percentage of all that are at most so
    large. [n] -> [k], [k]."""
    once, counts = np.unique(values, return_counts=True)
    return once.astype(np.float64), 100 * np.cumsum(counts) / len(values)


def draw_distribution(sets: Sequence[Boxes]) -> Figure:
    """Both distributions side by side, a curve a data set."""
    figure = new_figure(11, 4.6)
    from matplotlib.ticker import FuncFormatter, NullLocator

    plain = FuncFormatter(lambda tick, _: f"{tick:g}")
    of_sizes, of_counts = figure.subplots(1, 2)
    for index, one in enumerate(sets):
        x, y = steps(one.sizes)
        of_sizes.plot(x, y, drawstyle="steps-post", label=one.name, **line_style(index))
        x, y = steps(np.maximum(one.counts, 0.5))  # no box at all has no place on a log scale: half a box
        of_counts.plot(x, y, drawstyle="steps-post", label=one.name, **line_style(index))
    style(of_sizes, f"relative size of a box, {DEFINITION} (log scale)", "boxes of at most that size, %")
    style(of_counts, "boxes in a picture (log scale)", "pictures with at most so many boxes, %")
    of_sizes.set_xscale("log")
    of_sizes.set_xticks([0.002, 0.005, 0.01, 0.02, 0.05, 0.11, 0.2, 0.5, 1])
    of_sizes.set_xlim(0.002, 1)
    of_counts.set_xscale("log")
    top = max(int(one.counts.max()) for one in sets)
    of_counts.set_xticks([tick for tick in (1, 3, 10, 30, 150, 500, 1000) if tick <= max(10, top)])
    of_counts.set_xlim(0.5, max(10.0, 10 ** (math.ceil(4 * math.log10(max(top, 1))) / 4)))
    _mark(of_sizes.axvline, SIZE_MARKS)
    _mark(of_counts.axvline, COUNT_MARKS)
    for axes in (of_sizes, of_counts):
        axes.set_ylim(0, 101)
        axes.xaxis.set_major_formatter(plain)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend(loc="lower right", fontsize=9)
    return figure


def _mark(line: Callable[..., Any], marks: Sequence[float]) -> None:
    for mark in marks:
        line(mark, color="#9a9a9a", linewidth=0.9, linestyle=":", zorder=0)
