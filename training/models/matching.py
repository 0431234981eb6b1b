"""Which anchor learns which face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from training.models.boxes import pairwise_iou

NEGATIVE = -1
IGNORED = -2


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


def match(anchors: Tensor, faces: Tensor, ignored: Tensor, config: MatchConfig) -> Tensor:
    """anchors [A, 4], faces [G, 4], ignored [I, 4] (x1 y1 x2 y2) -> int64 [A].

    The index of the face that the anchor learns, NEGATIVE, or IGNORED. A face's own best anchors win over the
    threshold; where two faces want the same anchor, the one that overlaps it more has it.
    """
    result = torch.full((anchors.shape[0],), NEGATIVE, dtype=torch.int64, device=anchors.device)
    if len(ignored):
        result[share_inside(anchors, ignored) >= config.ignore_iof] = IGNORED
    if not len(faces):
        return result
    iou = pairwise_iou(anchors, faces)
    value, index = iou.max(dim=1)
    result = torch.where(value >= config.iou, index, result)
    best, where = iou.topk(min(config.best, iou.shape[0]), dim=0)
    face = torch.arange(len(faces), device=anchors.device).expand_as(where).reshape(-1)
    best, where = best.reshape(-1), where.reshape(-1)
    # Later writes win, so the pairs are written from the weakest overlap to the strongest.
    order = torch.argsort(best, stable=True)
    return _write_in_order(result, where[order], face[order], best[order] > 0)


def _write_in_order(target: Tensor, positions: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """target[positions[k]] = values[k] for each wanted k = 0, 1, ...: the last write of a position wins.

    The same on every device, and without a choice that a GPU would have to be waited for.
    """
    rank = torch.where(wanted, torch.arange(len(positions), device=target.device), -1)
    last = torch.full_like(target, -1).scatter_reduce_(0, positions, rank, "amax", include_self=True)
    return torch.where(last >= 0, values[last.clamp(min=0)], target)


def share_inside(anchors: Tensor, regions: Tensor) -> Tensor:
    """Largest share of each anchor's area that lies in one of the regions: [A]."""
    top_left = torch.maximum(anchors[:, None, :2], regions[None, :, :2])
    bottom_right = torch.minimum(anchors[:, None, 2:], regions[None, :, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    area = (anchors[:, 2:] - anchors[:, :2]).prod(dim=-1)
    return (inter / area[:, None]).amax(dim=1)
