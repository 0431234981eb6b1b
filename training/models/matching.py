"""Which anchor learns which face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training.models.boxes import pairwise_iou

NEGATIVE = -1
IGNORED = -2
_WORK = 1 << 25  # pairs of anchors and boxes that are compared at once


@dataclass(frozen=True)
class MatchConfig:
    """IoU 0.4 for both sides, so there is no ignore zone (paper, section 5.1.1); every face keeps its `best` anchors.

    ignore_iof: an unmatched anchor with this share of its area in an ignore region is left out of the loss.
    kind: `iou` is the paper's; `atss` (with `candidates` anchors a level) and `simota` are in `assignment`.
    """

    kind: Literal["iou", "atss", "simota"] = "iou"
    candidates: int = 9
    iou: float = 0.4
    best: int = 1
    ignore_iof: float = 0.5


def match_batch(anchors: Tensor, faces: Sequence[Tensor], ignored: Sequence[Tensor], config: MatchConfig) -> Tensor:
    """anchors [A, 4]; of each of N pictures faces [G, 4] and ignored [I, 4] (all x1 y1 x2 y2) -> int64 [N, A].

    The index of the face that the anchor learns, NEGATIVE, or IGNORED. A face's own best anchors win over the
    threshold; where two faces want the same anchor, the one that overlaps it more has it. Many pictures are done at
    once on a GPU, which takes longer to be asked for the steps of one than to do them.
    """
    result = torch.full((len(faces), len(anchors)), NEGATIVE, dtype=torch.int64, device=anchors.device)
    result[_covered(anchors, ignored) >= config.ignore_iof] = IGNORED
    at_once = _at_once(anchors, max(len(one) for one in faces))
    for begin in range(0, len(faces), at_once):
        part = slice(begin, begin + at_once)
        # Those with fewer faces are filled up with empty boxes, which overlap nothing.
        padded = pad_sequence(list(faces[part]), batch_first=True)
        if padded.shape[1]:
            result[part] = _match_padded(anchors, padded, result[part], config)
    return result


def _at_once(anchors: Tensor, faces: int) -> int:
    """How many pictures of up to so many faces are matched together."""
    return max(1, _WORK // (len(anchors) * max(1, faces))) if anchors.is_cuda else 1


def _match_padded(anchors: Tensor, faces: Tensor, unmatched: Tensor, config: MatchConfig) -> Tensor:
    """faces [n, G, 4], unmatched [n, A]: what anchors are without a face -> [n, A]."""
    iou = pairwise_iou(anchors, faces)
    value, index = iou.max(dim=2)
    result = torch.where(value >= config.iou, index, unmatched)
    best, where = iou.topk(min(config.best, iou.shape[1]), dim=1)
    face = torch.arange(faces.shape[1], device=anchors.device).expand_as(where).flatten(1)
    best, where = best.flatten(1), where.flatten(1)
    # Later writes win, so the pairs are written from the weakest overlap to the strongest.
    order = torch.argsort(best, dim=1, stable=True)
    return _write_in_order(result, where.gather(1, order), face.gather(1, order), best.gather(1, order) > 0)


def _write_in_order(target: Tensor, positions: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """In each row, target[positions[k]] = values[k] for each wanted k = 0, 1, ...: the last write of a position wins.

    The same on every device, and without a choice that a GPU would have to be waited for.
    """
    rank = torch.where(wanted, torch.arange(positions.shape[1], device=target.device), -1)
    last = torch.full_like(target, -1).scatter_reduce_(1, positions, rank, "amax", include_self=True)
    return torch.where(last >= 0, values.gather(1, last.clamp(min=0)), target)


def _covered(anchors: Tensor, ignored: Sequence[Tensor]) -> Tensor:
    """Largest share of each anchor's area that lies in one of a picture's ignore regions: [N, A]."""
    counts = torch.tensor([len(one) for one in ignored])
    covered = torch.zeros(len(ignored), len(anchors), device=anchors.device)
    if not counts.any():
        return covered
    owner = torch.arange(len(ignored)).repeat_interleave(counts).to(anchors.device)
    at_once = max(1, _WORK // len(anchors))
    for regions, of in zip(torch.split(torch.cat(list(ignored)), at_once), torch.split(owner, at_once), strict=True):
        share = _shares(anchors, regions)
        covered.scatter_reduce_(0, of[:, None].expand_as(share), share, "amax")
    return covered


def share_inside(anchors: Tensor, regions: Tensor) -> Tensor:
    """Largest share of each anchor's area that lies in one of the regions: [A]."""
    return _shares(anchors, regions).amax(dim=0)


def _shares(anchors: Tensor, regions: Tensor) -> Tensor:
    """Share of each anchor's area that lies in each region: [R, A]."""
    top_left = torch.maximum(anchors[None, :, :2], regions[:, None, :2])
    bottom_right = torch.minimum(anchors[None, :, 2:], regions[:, None, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    return inter / (anchors[:, 2:] - anchors[:, :2]).prod(dim=-1)
