"""The WIDER Face evaluation protocol, AP[.50:.95], AP by face size, and a stricter AP beside it. NumPy only.

What the official MATLAB code does, in its order (rule numbers are used in the comments below and in the tests):

1. scores are min-max normalised over all detections of all photos;
2. detections are sorted by score, best first, photo by photo;
3. IoU takes the right and bottom border in: a side is `x2 - x1 + 1` long;
4. a detection belongs to the face of its largest IoU, ignored faces among them. At or over the threshold: on an
   ignored face the detection leaves the proposals; the first on a counted face is a hit; a second on the same face is
   a false positive;
5. counts are read at the 1000 thresholds `1 - t / 1000`, summed over photos, and only then turned into precision and
   recall;
6. a photo without ground truth or without a detection is skipped, after its faces were counted;
7. AP is the all-points area under the precision envelope.

Rule 6 leaves false positives on photos without a face unpunished. `Report.ap50_strict` does not: it takes every
photo, and every score as a threshold (the way of PASCAL VOC 2010 and later), with matching as in rules 2 to 4.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

PROTOCOL = "wider"
THRESHOLDS = 1000
COCO_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


class Photo(Protocol):
    """What is true of one photo. boxes: float [n, 4], x1 y1 x2 y2 in pixels; ignore: bool [n], true = not counted
    (rule 4)."""

    @property
    def name(self) -> str: ...

    @property
    def boxes(self) -> NDArray[Any]: ...

    @property
    def ignore(self) -> NDArray[Any]: ...


class Found(Protocol):
    """What a detector says of one photo. boxes: float [k, 4], x1 y1 x2 y2 in pixels, not rounded; scores: float [k];
    any order."""

    @property
    def boxes(self) -> NDArray[Any]: ...

    @property
    def scores(self) -> NDArray[Any]: ...


@dataclass(frozen=True)
class SizeBucket:
    """Faces whose long side is at least `low` and less than `high`, both as fractions of the photo's long side."""

    name: str
    low: float
    high: float


# With photos resized to a long side of 640, these are COCO's limits of 32 and 96 pixels.
SIZE_BUCKETS = (
    SizeBucket("small", 0.0, 0.05),
    SizeBucket("medium", 0.05, 0.15),
    SizeBucket("large", 0.15, float("inf")),
)


@dataclass(frozen=True)
class Score:
    """AP of one subset of faces. `faces` is how many were counted; AP and recall are None where there was none to
    find."""

    faces: int
    ap50: float | None
    ap: float | None
    recall50: float | None


@dataclass(frozen=True)
class OperatingPoint:
    """What a detector does when detections under `score` are dropped."""

    score: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Report:
    """The outcome of `evaluate`; every AP and recall lies in 0..1.

    ap50: AP at IoU 0.5; ap: mean AP over IoU 0.50:0.05:0.95; recall50: recall at IoU 0.5 with every detection taken;
    ap50_strict: AP at IoU 0.5 that punishes false positives on photos without a face too; ap_by_iou: AP at every IoU
    taken; by_size: one `Score` a bucket, empty where the photos' sizes were not given; best: the threshold of the
    highest F1 at IoU 0.5, photos without a face counted.
    """

    photos: int
    faces: int
    ignored: int
    detections: int
    ap50: float
    ap: float
    recall50: float
    ap50_strict: float
    ap_by_iou: dict[str, float]
    by_size: dict[str, Score] = field(default_factory=dict)
    best: OperatingPoint | None = None
    protocol: str = PROTOCOL

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True)
class _Matches:
    """All detections of all photos after rules 1 to 3, photo by photo, sorted within each photo.

    scores: raw, [N]; overlap: the largest IoU with a face of the photo, 0 where it has none, [N]; face: index of that
    face in the list of all faces, -1 where none, [N]; size: long side over the photo's long side, [N], or None;
    in_photo_with_faces: bool [N].
    """

    scores: Floats
    overlap: Floats
    face: NDArray[np.int64]
    size: Floats | None
    in_photo_with_faces: NDArray[np.bool_]


def iou_matrix(first: ArrayLike, second: ArrayLike) -> Floats:
    """IoU of every pair, with WIDER's +1 pixel convention (rule 3). first: [n, 4], second: [m, 4], x1 y1 x2 y2 ->
    float64 [n, m]."""
    a = np.asarray(first, dtype=np.float64).reshape(-1, 4)
    b = np.asarray(second, dtype=np.float64).reshape(-1, 4)
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.clip(bottom_right - top_left + 1.0, 0.0, None)
    intersection = sides[..., 0] * sides[..., 1]
    area_a = (a[:, 2] - a[:, 0] + 1.0) * (a[:, 3] - a[:, 1] + 1.0)
    area_b = (b[:, 2] - b[:, 0] + 1.0) * (b[:, 3] - b[:, 1] + 1.0)
    union = area_a[:, None] + area_b[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def normalise_scores(scores: Floats) -> Floats:
    """Rule 1: min-max over everything. Equal scores (where MATLAB divides zero by zero) all become 1. [N] -> [N]."""
    if scores.size == 0:
        return scores
    low, high = scores.min(), scores.max()
    if high <= low:
        return np.ones_like(scores)
    normalised: Floats = (scores - low) / (high - low)
    return normalised


def average_precision(recall: Floats, precision: Floats) -> float:
    """Rule 7. recall: not decreasing, [N]; precision: [N]; a precision of 0/0 is passed as 0, which the envelope
    lifts."""
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(np.sum((recall[steps] - recall[steps - 1]) * envelope[steps]))


def evaluate(
    detections: Mapping[str, Found],
    annotations: Iterable[Photo],
    *,
    photo_sizes: Mapping[str, tuple[int, int]] | None = None,
    ious: Sequence[float] = COCO_IOUS,
    buckets: Sequence[SizeBucket] = SIZE_BUCKETS,
) -> Report:
    """Score `detections` (by photo name) against `annotations`; a photo that is not in `detections` counts as one
    without any.

    photo_sizes: (width, height) of every photo; with it the report has AP by face size. As in COCO, faces outside the
    bucket count as ignored, and detections outside the bucket's range that hit nothing leave the proposals.
    Raises ValueError on detections of photos that the annotations do not list (a mistake in names reads as a poor
    detector), on shapes that do not fit, on numbers that are not finite, and on a missing IoU of 0.5.
    """
    photos = list(annotations)
    if 0.5 not in ious:
        raise ValueError(f"the IoU thresholds must include 0.5, got {list(ious)}")
    names = [photo.name for photo in photos]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the annotations list {len(twice)} photos twice, such as {twice[0]!r}")
    strangers = sorted(set(detections) - set(names))
    if strangers:
        raise ValueError(
            f"{len(strangers)} photos have detections but no annotation, such as {strangers[0]!r}; "
            "names must match to the letter"
        )
    if photo_sizes is not None and (lacking := [name for name in names if name not in photo_sizes]):
        raise ValueError(f"photo_sizes lacks {len(lacking)} photos, such as {lacking[0]!r}")

    ignore = np.concatenate([np.zeros(0, dtype=bool), *(np.asarray(photo.ignore, dtype=bool) for photo in photos)])
    matches = match_photos(detections, photos, photo_sizes)
    faces = int((~ignore).sum())
    by_iou = {f"{iou:.2f}": _average_precision_at(matches, ignore, iou) for iou in ious}
    by_size: dict[str, Score] = {}
    if photo_sizes is not None:
        face_size = _face_sizes(photos, photo_sizes)
        for bucket in buckets:
            by_size[bucket.name] = _score_bucket(matches, ignore, face_size, bucket, ious)
    return Report(
        photos=len(photos),
        faces=faces,
        ignored=int(ignore.sum()),
        detections=int(matches.scores.size),
        ap50=by_iou["0.50"],
        ap=float(np.mean(list(by_iou.values()))),
        recall50=_recall_at(matches, ignore, 0.5),
        ap50_strict=_strict_average_precision(matches, ignore, 0.5),
        ap_by_iou=by_iou,
        by_size=by_size,
        best=_best_point(matches, ignore, 0.5),
    )


def match_photos(
    detections: Mapping[str, Found], photos: Sequence[Photo], photo_sizes: Mapping[str, tuple[int, int]] | None
) -> _Matches:
    scores, overlaps, faces, sizes, with_faces = (
        [np.zeros(0)],
        [np.zeros(0)],
        [np.zeros(0, np.int64)],
        [np.zeros(0)],
        [],
    )
    first_face = 0
    for photo in photos:
        truth = np.asarray(photo.boxes, dtype=np.float64).reshape(-1, 4)
        if len(truth) != len(photo.ignore):
            raise ValueError(f"{photo.name}: {len(truth)} faces but {len(photo.ignore)} ignore flags")
        found = detections.get(photo.name)
        if found is not None and len(found.scores):
            boxes, ranked = best_first(photo.name, found)
            scores.append(ranked)
            if len(truth):
                table = iou_matrix(boxes, truth)
                best = table.argmax(axis=1)
                overlaps.append(table[np.arange(len(best)), best])
                faces.append(first_face + best)
            else:
                overlaps.append(np.zeros(len(boxes)))
                faces.append(np.full(len(boxes), -1, dtype=np.int64))
            with_faces.append(np.full(len(boxes), len(truth) > 0))
            if photo_sizes is not None:
                sizes.append(long_sides(boxes) / max(photo_sizes[photo.name]))
        first_face += len(truth)
    return _Matches(
        scores=np.concatenate(scores),
        overlap=np.concatenate(overlaps),
        face=np.concatenate(faces),
        size=None if photo_sizes is None else np.concatenate(sizes),
        in_photo_with_faces=np.concatenate([np.zeros(0, dtype=bool), *with_faces]),
    )


def best_first(name: str, found: Found) -> tuple[Floats, Floats]:
    """Rule 2, with ties in the order given. -> boxes float64 [k, 4], scores float64 [k], best first."""
    boxes = np.asarray(found.boxes, dtype=np.float64)
    scores = np.asarray(found.scores, dtype=np.float64)
    if boxes.shape != (len(scores), 4) or scores.ndim != 1:
        raise ValueError(f"{name}: boxes must be [k, 4] and scores [k], got {boxes.shape} and {scores.shape}")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError(f"{name}: a detection holds a number that is not finite")
    order = np.argsort(-scores, kind="stable")
    return boxes[order], scores[order]


def long_sides(boxes: Floats) -> Floats:
    sides: Floats = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    return sides


def _face_sizes(photos: Sequence[Photo], photo_sizes: Mapping[str, tuple[int, int]]) -> Floats:
    sizes = [np.zeros(0)]
    for photo in photos:
        truth = np.asarray(photo.boxes, dtype=np.float64).reshape(-1, 4)
        sizes.append(long_sides(truth) / max(photo_sizes[photo.name]))
    return np.concatenate(sizes)


def decide(
    matches: _Matches, ignore: NDArray[np.bool_], iou: float, bucket: SizeBucket | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Rule 4 for every detection at once. -> (is a hit, is a proposal), bool [N] each."""
    reaches = (matches.overlap >= iou) & (matches.face >= 0)
    on_ignored = np.zeros_like(reaches)
    on_ignored[reaches] = ignore[matches.face[reaches]]
    candidates = np.flatnonzero(reaches & ~on_ignored)
    # Detections lie photo by photo and best first, so the first of a face in this order is the one that counts.
    _, first = np.unique(matches.face[candidates], return_index=True)
    hit = np.zeros_like(reaches)
    hit[candidates[first]] = True
    proposal = ~on_ignored
    if bucket is not None and matches.size is not None:
        outside = (matches.size < bucket.low) | (matches.size >= bucket.high)
        proposal &= reaches | ~outside
    return hit, proposal


def precision_recall(
    detections: Mapping[str, Found], photos: Sequence[Photo], iou: float = 0.5
) -> tuple[Floats, Floats]:
    """(recall, precision) at each of the 1000 thresholds, rules 1 to 6; float64 [1000] each, zeros without a face or a
    detection. `average_precision` of the two is the AP that `evaluate` reports."""
    ignore = np.concatenate([np.zeros(0, dtype=bool), *(np.asarray(photo.ignore, dtype=bool) for photo in photos)])
    return _precision_recall(match_photos(detections, photos, None), ignore, iou)


def _average_precision_at(
    matches: _Matches, ignore: NDArray[np.bool_], iou: float, bucket: SizeBucket | None = None
) -> float:
    """Rules 1 and 5 to 7 at one IoU threshold."""
    return average_precision(*_precision_recall(matches, ignore, iou, bucket))


def _precision_recall(
    matches: _Matches, ignore: NDArray[np.bool_], iou: float, bucket: SizeBucket | None = None
) -> tuple[Floats, Floats]:
    """Rules 1, 5 and 6. -> (recall, precision), float64 [THRESHOLDS] each."""
    hit, proposal = decide(matches, ignore, iou, bucket)
    faces = int((~ignore).sum())
    if not faces or not matches.scores.size:
        return np.zeros(THRESHOLDS), np.zeros(THRESHOLDS)
    thresholds = 1.0 - np.arange(1, THRESHOLDS + 1) / THRESHOLDS
    # The first threshold (they fall) that lets a detection through; the same detections pass as with MATLAB's cut of
    # a sorted list.
    entry = np.searchsorted(-thresholds, -normalise_scores(matches.scores), side="left")
    counted = matches.in_photo_with_faces  # Rule 6.
    hits = np.cumsum(np.bincount(entry[hit & counted], minlength=THRESHOLDS))
    proposals = np.cumsum(np.bincount(entry[proposal & counted], minlength=THRESHOLDS))
    return hits / faces, np.divide(hits, proposals, out=np.zeros(THRESHOLDS), where=proposals > 0)


def _curve(matches: _Matches, ignore: NDArray[np.bool_], iou: float) -> tuple[Floats, Floats, Floats]:
    """Every score as a threshold, all photos counted: (score, recall, precision), falling scores; empty without any."""
    hit, proposal = decide(matches, ignore, iou)
    order = np.argsort(-matches.scores[proposal], kind="stable")
    scores, hits = matches.scores[proposal][order], np.cumsum(hit[proposal][order])
    # Equal scores enter together: read the curve at the last of each.
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if scores.size else np.zeros(0, dtype=np.int64)
    return scores[last], hits[last] / max(int((~ignore).sum()), 1), hits[last] / (last + 1)


def _strict_average_precision(matches: _Matches, ignore: NDArray[np.bool_], iou: float) -> float:
    _, recall, precision = _curve(matches, ignore, iou)
    return average_precision(recall, precision) if recall.size else 0.0


def _best_point(matches: _Matches, ignore: NDArray[np.bool_], iou: float) -> OperatingPoint | None:
    scores, recall, precision = _curve(matches, ignore, iou)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    if not f1.size or not f1.max() > 0:
        return None
    at = int(f1.argmax())
    return OperatingPoint(float(scores[at]), float(precision[at]), float(recall[at]), float(f1[at]))


def _recall_at(matches: _Matches, ignore: NDArray[np.bool_], iou: float) -> float:
    faces = int((~ignore).sum())
    return float(decide(matches, ignore, iou)[0].sum() / faces) if faces else 0.0


def _score_bucket(
    matches: _Matches, ignore: NDArray[np.bool_], face_size: Floats, bucket: SizeBucket, ious: Sequence[float]
) -> Score:
    inside = (face_size >= bucket.low) & (face_size < bucket.high)
    ignore = ignore | ~inside
    faces = int((~ignore).sum())
    if not faces:
        return Score(faces=0, ap50=None, ap=None, recall50=None)
    by_iou = {iou: _average_precision_at(matches, ignore, iou, bucket) for iou in ious}
    return Score(
        faces=faces,
        ap50=by_iou[0.5],
        ap=float(np.mean(list(by_iou.values()))),
        recall50=_recall_at(matches, ignore, 0.5),
    )
