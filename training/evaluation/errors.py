"""What a detector gets wrong on annotated photos, error by error, and which annotations look wrong themselves.

Matching is that of `wider.py` (rules 2 to 4): a detection belongs to the annotated box of its largest IoU, ignore
regions among them, and the best-scored one at IoU 0.5 or more is the hit of a face. Errors have two sides: a face that
no detection hits, and a detection that hits no face. A loose box is both, so it is listed from either side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.evaluation.wider import (
    SIZE_BUCKETS,
    Floats,
    Found,
    Photo,
    best_first,
    decide,
    iou_matrix,
    long_sides,
    match_photos,
)

HIT_IOU = 0.5
LOOSE_IOU = 0.3
NEAR_IOU = 0.1  # under this, and with no centre inside the other box, two boxes have nothing to do with each other
SUSPECT_SCORE = 0.6
TWICE_IOU = 0.6
SIDE_RATIO = 1.25  # nested boxes of IoU 0.5 differ by 1.41; less than this is a shift rather than another size
SMALLEST_PIXELS = 3.0
LONGEST_ASPECT = 3.0
BORDER_PIXELS = 2.0  # annotators and resizing leave a gap of a pixel or two where a face is cut off

Box = tuple[float, float, float, float]
"""x1 y1 x2 y2 in pixels of the photo."""


class Side(StrEnum):
    """Whether an error is told of an annotated face or of a detection."""

    FACE = "face"
    DETECTION = "detection"


class Kind(StrEnum):
    MISS = "miss"
    LOCALISATION = "localisation"
    BACKGROUND = "background false positive"
    DUPLICATE = "duplicate"
    UNLABELLED = "likely unlabelled face"


class Cause(StrEnum):
    """A closer look at each kind."""

    UNSEEN = "no detection of any score overlaps it by 0.3"
    LOW_SCORE = "found, but scored under the threshold"
    LOW_AND_LOOSE = "a loose box under the threshold"
    NEIGHBOUR = "the detection on it belongs to a neighbour"
    LOOSE = "IoU 0.3 to 0.5"
    SECOND = "second box on a found face"
    LOOSE_SECOND = "loose second box on a found face"
    BESIDE_IGNORED = "overlaps an ignore region, but not enough"
    BESIDE_FACE = "touches an annotated box"
    ALONE = "nothing annotated nearby"


class Place(NamedTuple):
    """Where a box counts. folder: first component of the photo's name; bucket: of `SIZE_BUCKETS`; position: touching
    the photo's border or inside."""

    folder: str
    bucket: str
    position: str


@dataclass(frozen=True)
class Error:
    """One missed face or one false positive.

    box: of the face or the detection; pixels: its long side; size: that over the photo's long side; other: the box of
    the other side that `iou` is with, None where nothing overlaps; score: of the detection, which for a face is the
    one of `other`.
    """

    photo: str
    side: Side
    kind: Kind
    cause: Cause
    box: Box
    pixels: float
    size: float
    score: float | None
    iou: float
    other: Box | None
    place: Place

    @property
    def mode(self) -> str:
        return f"{self.kind}: {self.cause}"


@dataclass(frozen=True)
class Outcome:
    """All of one photo. faces: the place of every counted face; detections: how many reach the score; on_ignored: how
    many of them lie on ignore regions and count as nothing; ratios: square root of detected over annotated area, one
    for each face that has a detection of IoU 0.3 or more."""

    photo: str
    faces: tuple[Place, ...]
    detections: int
    on_ignored: int
    errors: tuple[Error, ...]
    ratios: tuple[float, ...]


class Reason(StrEnum):
    """Why an annotation may be wrong."""

    UNLABELLED = "probable unlabelled face"
    LARGE = "box much larger than the face found in it"
    SMALL = "box much smaller than the face found on it"
    SHIFTED = "box beside the face found"
    TWICE = "two boxes on one face"
    DEGENERATE = "degenerate box"


@dataclass(frozen=True)
class Suspect:
    """One annotation that may be wrong, or one that may be missing.

    box: the annotated one, or the detection where none is annotated; other: the detection, or the other annotated box;
    note: what a degenerate box suffers from.
    """

    photo: str
    reason: Reason
    box: Box
    other: Box | None = None
    score: float | None = None
    iou: float | None = None
    note: str = ""


@dataclass(frozen=True)
class _Scene:
    """One photo after matching. boxes [k, 4], scores [k], best first; truth [n, 4], ignore [n]; face: index of the
    annotated box of the largest IoU, -1 where there is none, overlap: that IoU, [k]; above: scored high enough, [k];
    missed: counted faces without a hit, [n]; table: every IoU, [k, n]."""

    name: str
    size: tuple[int, int]
    boxes: Floats
    scores: Floats
    truth: Floats
    ignore: NDArray[np.bool_]
    face: NDArray[np.int64]
    overlap: Floats
    above: NDArray[np.bool_]
    missed: NDArray[np.bool_]
    table: Floats


def as_box(values: Iterable[float]) -> Box:
    x1, y1, x2, y2 = (float(value) for value in values)
    return x1, y1, x2, y2


def place_of(name: str, box: Box, size: tuple[int, int]) -> Place:
    """size: (width, height) of the photo in pixels."""
    share = max(box[2] - box[0], box[3] - box[1]) / max(size)
    bucket = next((one.name for one in SIZE_BUCKETS if one.low <= share < one.high), SIZE_BUCKETS[0].name)
    cut = min(box[0], box[1]) <= BORDER_PIXELS or size[0] - box[2] <= BORDER_PIXELS or size[1] - box[3] <= BORDER_PIXELS
    return Place(name.split("/")[0] if "/" in name else ".", bucket, "border" if cut else "inside")


def is_near(box: Box, others: Floats) -> bool:
    """Whether any of `others` [n, 4] overlaps the box noticeably, or has its centre in it, or the other way round."""
    if not len(others):
        return False
    x1, y1, x2, y2 = box
    centres = (others[:, :2] + others[:, 2:]) / 2
    inside = (centres[:, 0] >= x1) & (centres[:, 0] <= x2) & (centres[:, 1] >= y1) & (centres[:, 1] <= y2)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    around = (others[:, 0] <= x) & (others[:, 2] >= x) & (others[:, 1] <= y) & (others[:, 3] >= y)
    return bool((inside | around | (iou_matrix(box, others)[0] >= NEAR_IOU)).any())


def find_errors(photo: Photo, found: Found, size: tuple[int, int], score: float) -> Outcome:
    """Sort out one photo. size: (width, height) in pixels; score: detections under it are as good as not made.

    Raises ValueError on shapes that do not fit and numbers that are not finite.
    """
    matches = match_photos({photo.name: found}, [photo], None)
    ignore = np.asarray(photo.ignore, dtype=bool)
    hit, proposal = decide(matches, ignore, HIT_IOU)
    truth = np.asarray(photo.boxes, dtype=np.float64).reshape(-1, 4)
    boxes, scores = best_first(photo.name, found)
    above = scores >= score
    missed = ~ignore
    # The hit of a face is the best-scored detection that reaches it, so the threshold takes nothing but late hits.
    missed[matches.face[hit & above]] = False
    table = iou_matrix(boxes, truth)
    scene = _Scene(photo.name, size, boxes, scores, truth, ignore, matches.face, matches.overlap, above, missed, table)
    errors = [_missed_face(scene, int(index)) for index in np.flatnonzero(missed)]
    errors += [_false_positive(scene, int(index)) for index in np.flatnonzero(proposal & ~hit & above)]
    loose, _ = decide(matches, ignore, LOOSE_IOU)
    pairs = [(boxes[index], truth[matches.face[index]]) for index in np.flatnonzero(loose & above)]
    return Outcome(
        photo=photo.name,
        faces=tuple(place_of(photo.name, as_box(box), size) for box in truth[~ignore]),
        detections=int(above.sum()),
        on_ignored=int((~proposal & above).sum()),
        errors=tuple(errors),
        ratios=tuple(float(np.sqrt(_area(one) / _area(other))) for one, other in pairs),
    )


def _area(box: Floats) -> float:
    """In pixels, with WIDER's +1 convention, so that it is never zero on a counted face."""
    return float((box[2] - box[0] + 1.0) * (box[3] - box[1] + 1.0))


def _missed_face(scene: _Scene, index: int) -> Error:
    overlap = scene.table[:, index]
    loose = scene.above & (scene.face == index) & (overlap >= LOOSE_IOU)
    if loose.any():
        best = int(np.where(loose, overlap, -1.0).argmax())
        return _error(scene, Side.FACE, index, best, Kind.LOCALISATION, Cause.LOOSE)
    if not overlap.size or overlap.max() <= 0:
        return _error(scene, Side.FACE, index, None, Kind.MISS, Cause.UNSEEN)
    best = int(overlap.argmax())
    others = scene.above & (overlap >= LOOSE_IOU)  # not this face's own, or they would have been hit or loose
    if others.any() and (overlap[best] < HIT_IOU or overlap[others].max() >= HIT_IOU):
        best, cause = int(np.where(others, overlap, -1.0).argmax()), Cause.NEIGHBOUR
    elif overlap[best] >= HIT_IOU:
        cause = Cause.LOW_SCORE
    else:
        cause = Cause.LOW_AND_LOOSE if overlap[best] >= LOOSE_IOU else Cause.UNSEEN
    return _error(scene, Side.FACE, index, best, Kind.MISS, cause)


def _false_positive(scene: _Scene, index: int) -> Error:
    face, overlap = int(scene.face[index]), float(scene.overlap[index])
    on_face = face >= 0 and not scene.ignore[face]
    if overlap >= HIT_IOU:
        kind, cause = Kind.DUPLICATE, Cause.SECOND
    elif overlap >= LOOSE_IOU and on_face and scene.missed[face]:
        kind, cause = Kind.LOCALISATION, Cause.LOOSE
    elif overlap >= LOOSE_IOU and on_face:
        kind, cause = Kind.DUPLICATE, Cause.LOOSE_SECOND
    elif overlap >= LOOSE_IOU:
        kind, cause = Kind.BACKGROUND, Cause.BESIDE_IGNORED
    elif is_near(as_box(scene.boxes[index]), scene.truth):
        kind, cause = Kind.BACKGROUND, Cause.BESIDE_FACE
    else:
        kind = Kind.UNLABELLED if scene.scores[index] >= SUSPECT_SCORE else Kind.BACKGROUND
        cause = Cause.ALONE
    return _error(scene, Side.DETECTION, index, face if overlap > 0 else None, kind, cause)


def _error(scene: _Scene, side: Side, index: int, other: int | None, kind: Kind, cause: Cause) -> Error:
    """index: of the face or the detection; other: of its counterpart."""
    own, theirs = (scene.truth, scene.boxes) if side is Side.FACE else (scene.boxes, scene.truth)
    table = scene.table.T if side is Side.FACE else scene.table
    box = as_box(own[index])
    pixels = float(long_sides(own[index : index + 1])[0])
    scored = other if side is Side.FACE else index
    return Error(
        photo=scene.name,
        side=side,
        kind=kind,
        cause=cause,
        box=box,
        pixels=pixels,
        size=pixels / max(scene.size),
        score=None if scored is None else float(scene.scores[scored]),
        iou=0.0 if other is None else float(table[index, other]),
        other=None if other is None else as_box(theirs[other]),
        place=place_of(scene.name, box, scene.size),
    )


def find_suspects(photo: Photo, found: Found, size: tuple[int, int]) -> list[Suspect]:
    """Annotations of one photo that a sure detection contradicts, and those that cannot be right by themselves.

    size: (width, height) in pixels.
    """
    suspects = []
    for error in find_errors(photo, found, size, SUSPECT_SCORE).errors:
        if error.kind is Kind.UNLABELLED:
            suspects.append(Suspect(photo.name, Reason.UNLABELLED, error.box, error.other, error.score, error.iou))
        elif error.kind is Kind.LOCALISATION and error.side is Side.FACE and error.other is not None:
            reason = _compare(error.box, error.other)
            suspects.append(Suspect(photo.name, reason, error.box, error.other, error.score, error.iou))
    truth = np.asarray(photo.boxes, dtype=np.float64).reshape(-1, 4)
    counted = truth[~np.asarray(photo.ignore, dtype=bool)]
    table = iou_matrix(counted, counted)
    for first, second in zip(*np.nonzero(np.triu(table > TWICE_IOU, k=1)), strict=True):
        pair = as_box(counted[first]), as_box(counted[second])
        suspects.append(Suspect(photo.name, Reason.TWICE, *pair, iou=float(table[first, second])))
    for values, ignored in zip(truth, photo.ignore, strict=True):
        if note := _defect(as_box(values), bool(ignored), size):
            suspects.append(Suspect(photo.name, Reason.DEGENERATE, as_box(values), note=note))
    return suspects


def _compare(annotated: Box, detected: Box) -> Reason:
    ratio = float(np.sqrt(_area(np.array(annotated)) / _area(np.array(detected))))
    if ratio >= SIDE_RATIO:
        return Reason.LARGE
    return Reason.SMALL if ratio <= 1 / SIDE_RATIO else Reason.SHIFTED


def _defect(box: Box, ignored: bool, size: tuple[int, int]) -> str:
    """What is wrong with the box by itself, or nothing. Ignore regions may have any shape, but must have an area."""
    width, height = box[2] - box[0], box[3] - box[1]
    if min(width, height) <= 0:
        return f"no area: {width:g} x {height:g} px"
    if ignored:
        return ""
    if min(width, height) < SMALLEST_PIXELS:
        return f"only {width:g} x {height:g} px"
    if max(width, height) > LONGEST_ASPECT * min(width, height):
        return f"{width:g} x {height:g} px is no shape of a face"
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    if not (0 <= x <= size[0] and 0 <= y <= size[1]):
        return f"its middle lies outside the photo of {size[0]} x {size[1]} px"
    return ""
