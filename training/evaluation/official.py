"""WIDER Face's own ground-truth files: `wider_{easy,medium,hard}_val.mat`, one subset of the counted faces each.

The three list the same faces of the same photos and differ in which of them count; the rest are ignored (rule 4 of
`wider.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from training.data.wider import PhotoAnnotation

SUBSETS = ("easy", "medium", "hard")


def read_subset(path: Path) -> list[PhotoAnnotation]:
    """Read one subset. Names are those of the annotation text files, `event/file.jpg`.

    Raises FileNotFoundError, or ValueError naming the file where it is not one of the official ones.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise FileNotFoundError(f"no {path}: the official ground truth comes with WIDER Face's evaluation tools")
    try:
        content: dict[str, Any] = loadmat(path)
        events, files, boxes, counted = (
            content[key] for key in ("event_list", "file_list", "face_bbx_list", "gt_list")
        )
        photos = []
        for event in range(len(events)):
            folder = str(events[event, 0][0])
            for at in range(len(files[event, 0])):
                name = f"{folder}/{files[event, 0][at, 0][0]}.jpg"
                photos.append(_photo(name, boxes[event, 0][at, 0], counted[event, 0][at, 0]))
        return photos
    except Exception as error:
        raise ValueError(f"{path} is not a ground-truth file of WIDER Face's evaluation: {error!r}") from error


def _photo(name: str, rows: Any, counted: Any) -> PhotoAnnotation:
    """rows: [n, 4] x y w h; counted: indices from 1 of the faces that count."""
    boxes = np.asarray(rows, dtype=np.float64).reshape(-1, 4).copy()
    boxes[:, 2:] += boxes[:, :2]
    ignore = np.ones(len(boxes), dtype=bool)
    ignore[np.asarray(counted, dtype=np.int64).reshape(-1) - 1] = False
    return PhotoAnnotation(name, boxes, ignore)


def read_subsets(folder: Path) -> dict[str, list[PhotoAnnotation]]:
    """All three, by name."""
    return {name: read_subset(folder / f"wider_{name}_val.mat") for name in SUBSETS}
