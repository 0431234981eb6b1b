"""Several passes over one picture, joined by box voting: multi-scale testing (paper, section 5.4) and mirroring.

The paper gives the factors 0.5, 1, 1.5, 2 of the original picture and nothing else. The rest is the convention of S3FD
(Zhang et al., ICCV 2017) and DSFD (Li et al., CVPR 2019): shrunken pictures answer for large faces only, enlarged ones
for small faces only, one mirrored pass at factor 1, and box voting (Gidaris and Komodakis, ICCV 2015) instead of NMS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from service.engines.base import Detections
from training.evaluation.detections import Pixels, Source
from training.evaluation.wider import iou_matrix

FACTORS = (0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Pass:
    """One look at the picture: resized by `factor`, then mirrored left to right."""

    factor: float = 1.0
    mirrored: bool = False


@dataclass(frozen=True)
class Voting:
    """iou: from which on boxes are one face; max_detections: of a picture; larger_than: long side, in pixels of the
    original and borders included, that a box of a shrunken picture must exceed; smaller_than: short side that a box of
    an enlarged one must stay below."""

    iou: float = 0.3
    max_detections: int = 750
    larger_than: float = 30.0
    smaller_than: float = 100.0


def in_range(boxes: ArrayLike, factor: float, voting: Voting | None = None) -> NDArray[np.bool_]:
    """Which boxes [n, 4] (x1 y1 x2 y2, pixels of the original) a pass at `factor` answers for -> bool [n]."""
    voting = voting or Voting()
    table = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    sides = table[:, 2:] - table[:, :2] + 1.0
    if factor < 1:
        large: NDArray[np.bool_] = sides.max(axis=1) > voting.larger_than
        return large
    if factor > 1:
        small: NDArray[np.bool_] = sides.min(axis=1) < voting.smaller_than
        return small
    return np.ones(len(table), dtype=bool)


def vote_boxes(
    boxes: ArrayLike, scores: ArrayLike, passes: int, voting: Voting | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Join the boxes of several passes, best first.

    The best box left gathers all that overlap it (IoU, borders included, at or above `voting.iou`), itself too. They
    become one: corners are the mean weighted by score, the score is the largest. A box that gathers no other is dropped
    where there were several passes, since one of them alone saw it, and kept where there was one.

    boxes: [n, 4] x1 y1 x2 y2, of all passes; scores: [n], not negative -> (float64 [k, 4], float64 [k]), best first, at
    most `voting.max_detections`. Raises ValueError on shapes that do not fit.
    """
    voting = voting or Voting()
    table = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    weights = np.asarray(scores, dtype=np.float64)
    if weights.shape != (len(table),):
        raise ValueError(f"{len(table)} boxes but scores of shape {weights.shape}")
    order = np.argsort(-weights, kind="stable")
    table, weights = table[order], weights[order]
    voted = [np.zeros((0, 4))]
    best: list[float] = []
    while len(table) and len(best) < voting.max_detections:
        together = iou_matrix(table[:1], table)[0] >= voting.iou
        together[0] = True  # even a box without area is itself
        if together.sum() > 1 or passes == 1:
            share = weights[together]
            # Scores of zero have no weighted mean; their plain one is as good.
            total = share.sum()
            share = share / total if total > 0 else np.full(len(share), 1 / len(share))
            voted.append((table[together] * share[:, None]).sum(axis=0, keepdims=True))
            best.append(float(weights[0]))
        table, weights = table[~together], weights[~together]
    return np.concatenate(voted), np.array(best, dtype=np.float64)


def mirror_boxes(boxes: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Boxes [n, 4] of the mirrored picture -> of the picture, which is `width` pixels wide; and back."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


class MultiPassSource:
    """A source that looks several times and votes."""

    def __init__(self, source: Source, passes: Sequence[Pass], voting: Voting | None = None) -> None:
        """source: one that keeps every picture's own size (`long_side` 0) where a factor differs from 1.

        Raises ValueError where there is no pass, or where resizing would be undone by the source.
        """
        if not passes:
            raise ValueError(f"{source.name}: no pass to make")
        if source.long_side and any(one.factor != 1 for one in passes):
            raise ValueError(
                f"{source.name} resizes every picture to {source.long_side} pixels, so factors have no effect"
            )
        self._source, self.passes, self.voting = source, tuple(passes), voting or Voting()
        self.name, self.long_side = source.name, source.long_side
        content = f"{source.fingerprint} {self.passes} {self.voting}"
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    def __call__(self, pixels: Pixels) -> Detections:
        found = [self._look(pixels, one) for one in self.passes]
        boxes = np.concatenate([one.boxes for one in found])
        scores = np.concatenate([one.scores for one in found])
        boxes, scores = vote_boxes(boxes, scores, len(self.passes), self.voting)
        return Detections(boxes.astype(np.float32), scores.astype(np.float32))

    def _look(self, pixels: Pixels, one: Pass) -> Detections:
        height, width = pixels.shape[:2]
        new_w, new_h = max(1, round(width * one.factor)), max(1, round(height * one.factor))
        shown = pixels
        if (new_w, new_h) != (width, height):
            shown = np.asarray(Image.fromarray(pixels).resize((new_w, new_h), Image.Resampling.BILINEAR))
        if one.mirrored:
            shown = np.ascontiguousarray(shown[:, ::-1])
        found = self._source(shown)
        boxes = found.boxes.astype(np.float64)
        if one.mirrored:
            boxes = mirror_boxes(boxes, new_w)
        boxes *= np.array([width / new_w, height / new_h] * 2)
        keep = in_range(boxes, one.factor, self.voting)
        return Detections(boxes[keep].astype(np.float32), found.scores[keep])


def passes_of(factors: Sequence[float] = (1.0,), flip: bool = False) -> tuple[Pass, ...]:
    """One pass a factor; with `flip` one more, mirrored, at factor 1."""
    return (*(Pass(factor) for factor in factors), *((Pass(1.0, mirrored=True),) if flip else ()))
