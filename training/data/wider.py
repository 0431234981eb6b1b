"""Annotations in WIDER Face's text format (`*_bbx_gt.txt`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

_INVALID_COLUMN = 7  # x y w h blur expression illumination invalid occlusion pose


@dataclass(frozen=True)
class PhotoAnnotation:
    """One photo. name: path below the image folder; boxes: float64 [n, 4] x1 y1 x2 y2; ignore: bool [n].

    `ignore` marks what is neither a face to learn nor a false positive: invalid boxes and boxes without area.
    """

    name: str
    boxes: NDArray[np.float64]
    ignore: NDArray[np.bool_]


def read_annotations(path: Path) -> list[PhotoAnnotation]:
    """Read one annotation file. Raises ValueError that names file and line where the format is broken."""
    return [_annotation(name, rows) for name, rows in read_blocks(path, "boxes", _row)]


def read_text(path: Path) -> str:
    """Raises OSError, and ValueError that names the file where it is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from None


def read_blocks(
    path: Path, things: str, read_row: Callable[[Path, int, list[str]], list[float]]
) -> Iterator[tuple[str, list[list[float]]]]:
    """Yield (name, rows) of a file that lists, for each photo, its name, a number, and so many lines, as WIDER Face's
    and FDDB's annotations do.

    things: what the lines are, for messages; read_row: (path, index of the line, all lines) -> numbers. Raises
    ValueError that names file and line where there is no number or a name leads out of the image folder, and what
    `read_row` raises.
    """
    lines = read_text(path).splitlines()
    at = 0
    while at < len(lines):
        name = lines[at].strip()
        if not name:
            at += 1
            continue
        try:
            count = int(lines[at + 1])
            if count < 0:
                raise ValueError
        except (IndexError, ValueError):
            raise ValueError(f"{path}:{at + 2}: expected the number of {things} of {name!r}") from None
        # Predictions are written to files of these names.
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{path}:{at + 1}: {name!r} does not lie below the image folder")
        yield name, [read_row(path, at + 2 + k, lines) for k in range(count)]
        at += 2 + count
        # A photo without faces has one row of zeros in WIDER's files.
        if count == 0 and at < len(lines) and _is_zero_row(lines[at]):
            at += 1


def _row(path: Path, at: int, lines: list[str]) -> list[float]:
    try:
        values = [float(v) for v in lines[at].split()]
        # Infinite corners are as far from a box as no numbers at all.
        if len(values) < 4 or not np.isfinite([*values, values[0] + values[2], values[1] + values[3]]).all():
            raise ValueError
    except (IndexError, ValueError):
        raise ValueError(f"{path}:{at + 1}: expected a box as `x y w h ...`, all finite numbers") from None
    return values


def _is_zero_row(line: str) -> bool:
    parts = line.split()
    return len(parts) >= 4 and all(p == "0" for p in parts)


def _annotation(name: str, rows: list[list[float]]) -> PhotoAnnotation:
    boxes = np.array([row[:4] for row in rows], dtype=np.float64).reshape(-1, 4)
    invalid = np.array([len(row) > _INVALID_COLUMN and row[_INVALID_COLUMN] == 1 for row in rows], dtype=bool)
    degenerate = (boxes[:, 2] <= 0) | (boxes[:, 3] <= 0)
    boxes[:, 2:] += boxes[:, :2]
    return PhotoAnnotation(name, boxes, invalid | degenerate)
