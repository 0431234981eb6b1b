"""FDDB: its folds on disk, and its two ROC curves (Jain and Learned-Miller, UMass technical report 2010; paper, 5.5).

What the original program does: in each picture, at each score threshold, detections over it are matched one-to-one with
the ellipses so that the sum of IoU is largest. The discrete score of a match is 1 where its IoU is over 0.5, the
continuous one its IoU. A detection without a match of over 0.5 is a false positive, in both curves. Counts are summed
over all pictures of the ten folds.

The one difference: it counts pixels, here areas are exact (see `ellipses.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.wider import read_blocks, read_text
from training.evaluation.detections import check_different
from training.evaluation.ellipses import (
    EllipseFit,
    ellipses_of_boxes,
    polygon_ellipse_iou,
    polygons_of_boxes,
    polygons_of_ellipses,
)
from training.evaluation.wider import Found, best_first

Floats = NDArray[np.float64]

FOLDS = 10
MATCH_IOU = 0.5
READ_AT = (1000, 2000)
# Figures end at 2000 false positives.
CURVE_END = 5000


@dataclass(frozen=True)
class FddbPhoto:
    """name: path below the image folder; fold: from 1; ellipses: float64 [n, 5], see `ellipses.py`."""

    name: str
    fold: int
    ellipses: Floats


@dataclass(frozen=True)
class FddbCurves:
    """Both ROC curves, one point a score threshold, falling; arrays are [points].

    false_positives: counts; discrete, continuous: true-positive rates in 0..1.
    """

    images: int
    faces: int
    detections: int
    scores: Floats
    false_positives: NDArray[np.int64]
    discrete: Floats
    continuous: Floats

    def rate_at(self, false_positives: int) -> tuple[float, float]:
        """(discrete, continuous) at the lowest threshold that makes at most so many false positives."""
        reached = np.flatnonzero(self.false_positives <= false_positives)
        if not reached.size:
            return 0.0, 0.0
        return float(self.discrete[reached[-1]]), float(self.continuous[reached[-1]])

    def to_dict(self, end: int = CURVE_END) -> dict[str, Any]:
        """For JSON. The curve has one point a count of false positives, rising, up to `end` of them."""
        # A lower threshold can make one false positive fewer, since it may change a matching: of the points with at
        # most so many, the last counts, as in `rate_at`.
        ahead = np.minimum.accumulate(self.false_positives[::-1])[::-1]
        counts = np.unique(ahead[ahead <= end])
        last = np.searchsorted(ahead, counts, side="right") - 1
        discrete, continuous = zip(*(self.rate_at(count) for count in READ_AT), strict=True)
        return {
            "images": self.images,
            "faces": self.faces,
            "detections": self.detections,
            "discrete": {str(count): rate for count, rate in zip(READ_AT, discrete, strict=True)},
            "continuous": {str(count): rate for count, rate in zip(READ_AT, continuous, strict=True)},
            "curve": {
                "fp": counts.tolist(),
                "discrete": self.discrete[last].round(6).tolist(),
                "continuous": self.continuous[last].round(6).tolist(),
                "score": self.scores[last].round(6).tolist(),
            },
        }


def read_folds(root: Path) -> tuple[list[FddbPhoto], Path]:
    """All ten folds, and the folder that names of photos are relative to.

    root: holds `FDDB-folds/FDDB-fold-01.txt`, `FDDB-fold-01-ellipseList.txt`, ... and the pictures, in `originalPics`
    or in itself. Raises FileNotFoundError that says what is missing, ValueError that names file and line.
    """
    folder = next((place for place in (root / "FDDB-folds", root) if (place / _list_name(1)).is_file()), None)
    if folder is None:
        raise FileNotFoundError(f"no FDDB-folds/{_list_name(1)} in {root}: expected FDDB's folds there")
    photos: list[FddbPhoto] = []
    for fold in range(1, FOLDS + 1):
        listed, annotated = folder / _list_name(fold), folder / f"FDDB-fold-{fold:02}-ellipseList.txt"
        for path in (listed, annotated):
            if not path.is_file():
                raise FileNotFoundError(f"no {path}: all ten folds are evaluated together")
        names = read_text(listed).split()
        found = [
            FddbPhoto(f"{name}.jpg", fold, np.array(rows, dtype=np.float64).reshape(-1, 5))
            for name, rows in read_blocks(annotated, "ellipses", _ellipse)
        ]
        if [photo.name for photo in found] != [f"{name}.jpg" for name in names]:
            raise ValueError(f"{annotated} does not annotate the photos that {listed} lists, in its order")
        photos += found
    if not photos:
        raise ValueError(f"the lists of folds in {folder} name no photo")
    check_different(folder, photos)
    images = root / "originalPics"
    return photos, images if images.is_dir() else root


def _list_name(fold: int) -> str:
    return f"FDDB-fold-{fold:02}.txt"


def _ellipse(path: Path, at: int, lines: list[str]) -> list[float]:
    try:
        values = [float(value) for value in lines[at].split()]
        if len(values) < 5 or not np.isfinite(values).all() or min(values[:2]) <= 0:
            raise ValueError
    except (IndexError, ValueError):
        raise ValueError(f"{path}:{at + 1}: expected an ellipse as `major minor angle x y 1`") from None
    return values[:5]


def evaluate_fddb(
    detections: Mapping[str, Found], photos: Sequence[FddbPhoto], fit: EllipseFit | None = None
) -> FddbCurves:
    """Both curves of `detections` (boxes, by photo name); a photo that is not in `detections` has none.

    fit: turn boxes into ellipses by it; None scores the boxes as they are.
    Raises ValueError on detections of photos that are not listed and on numbers that are not finite.
    """
    if strangers := set(detections) - {photo.name for photo in photos}:
        raise ValueError(f"detections of {len(strangers)} photos without an annotation, such as {min(strangers)!r}")
    tables = [np.zeros((0, 4))]
    for photo in photos:
        if (found := detections.get(photo.name)) is not None and len(found.scores):
            boxes, scores = best_first(photo.name, found)
            tables.append(match_steps(overlaps(boxes, photo.ellipses, fit), scores))
    steps = np.concatenate(tables)
    steps = steps[np.argsort(-steps[:, 0], kind="stable")]
    last = np.flatnonzero(np.append(steps[1:, 0] != steps[:-1, 0], True)) if len(steps) else np.zeros(0, np.int64)
    sums = steps[:, 1:].cumsum(axis=0)[last]
    faces = sum(len(photo.ellipses) for photo in photos)
    return FddbCurves(
        images=len(photos),
        faces=faces,
        detections=sum(len(one.scores) for one in detections.values()),
        scores=steps[last, 0],
        false_positives=np.round(sums[:, 0]).astype(np.int64),
        discrete=np.round(sums[:, 1]) / max(faces, 1),
        continuous=sums[:, 2] / max(faces, 1),
    )


def overlaps(boxes: Floats, ellipses: Floats, fit: EllipseFit | None = None) -> Floats:
    """IoU of detections with ellipses. boxes: [k, 4]; ellipses: [n, 5] -> [k, n]."""
    polygons = polygons_of_boxes(boxes) if fit is None else polygons_of_ellipses(ellipses_of_boxes(boxes, fit))
    return polygon_ellipse_iou(polygons, ellipses)


def match_steps(iou: Floats, scores: Floats) -> Floats:
    """What each score threshold adds in one picture.

    iou: [k, n], best score first; scores: [k] -> [thresholds, 4]: score, false positives, matches of over 0.5, sum of
    IoU. A step may be negative, since a further detection can change the whole matching.
    """
    from scipy.optimize import linear_sum_assignment

    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    totals = np.zeros((len(last) + 1, 3))
    touching = iou.max(axis=1, initial=0.0) > 0
    taken, hits, overlap = -1, 0, 0.0
    for row, end in enumerate(last, start=1):
        # Detections that touch no face cannot be matched, nor change what is.
        some = np.flatnonzero(touching[: end + 1])
        if len(some) != taken:
            taken = len(some)
            matched = iou[some][linear_sum_assignment(iou[some], maximize=True)]
            hits, overlap = int((matched > MATCH_IOU).sum()), float(matched.sum())
        totals[row] = end + 1 - hits, hits, overlap
    return np.column_stack([scores[last], np.diff(totals, axis=0)])
