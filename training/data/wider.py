"""Annotations in WIDER Face's text format (`*_bbx_gt.txt`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

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


def read_blocks(
    path: Path, things: str, read_row: Callable[[Path, int, list[str]], list[float]]
) -> Iterator[tuple[str, list[list[float]]]]:
    """Yield (name, rows) of a file that lists, for each photo, its name, a number, and so many lines, as WIDER Face's
    and FDDB's annotations do.

    things: what the lines are, for messages; read_row: (path, index of the line, all lines) -> numbers. Raises
    ValueError that names file and line where there is no number, and what `read_row` raises.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        name = lines[at].strip()
        if not name:
            at += 1
            continue
        try:
            count = int(lines[at + 1])
        except (IndexError, ValueError):
            raise ValueError(f"{path}:{at + 2}: expected the number of {things} of {name!r}") from None
        yield name, [read_row(path, at + 2 + k, lines) for k in range(count)]
        at += 2 + count
        # A photo without faces has one row of zeros in WIDER's files.
        if count == 0 and at < len(lines) and _is_zero_row(lines[at]):
            at += 1


def _row(path: Path, at: int, lines: list[str]) -> list[float]:
    try:
        values = [float(v) for v in lines[at].split()]
        if len(values) < 4:
            raise ValueError
    except (IndexError, ValueError):
        raise ValueError(f"{path}:{at + 1}: expected a box as `x y w h ...`") from None
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
