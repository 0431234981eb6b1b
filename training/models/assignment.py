"""Assignments that choose the anchors of a face by its own statistics, beside the paper's fixed IoU (`matching`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from training.models.boxes import pairwise_iou
from training.models.matching import IGNORED, NEGATIVE, MatchConfig, share_inside

_CENTER_RADIUS = 0.625  # of the anchor's side: 2.5 strides, the anchor's side being four
_SIMOTA_TOP = 10
_SIMOTA_IOU_WEIGHT = 3.0
_OUTSIDE = 1e5


class Prediction(NamedTuple):
    """What the detector says of one picture: logits [A], boxes [A, 4] x1 y1 x2 y2."""

    logits: Tensor
    boxes: Tensor


def assign(
    anchors: Tensor,
    levels: Sequence[int],
    faces: Tensor,
    ignored: Tensor,
    config: MatchConfig,
    prediction: Prediction | None = None,
) -> Tensor:
    """anchors [A, 4], faces [G, 4], ignored [I, 4] -> int64 [A]: face index, NEGATIVE or IGNORED, by ATSS or SimOTA.

    levels: anchors of each level, which ATSS needs; prediction: which SimOTA needs. Raises ValueError without them.
    """
    result = torch.full((len(anchors),), NEGATIVE, dtype=torch.int64, device=anchors.device)
    if len(ignored):
        result[share_inside(anchors, ignored) >= config.ignore_iof] = IGNORED
    if not len(faces):
        return result
    if config.kind == "atss":
        if sum(levels) != len(anchors):
            raise ValueError(f"ATSS needs the size of each level: {tuple(levels)} for {len(anchors)} anchors")
        chosen, score = _atss(anchors, levels, faces, config.candidates)
    else:
        if prediction is None:
            raise ValueError("SimOTA needs the detector's prediction")
        chosen, score = _simota(anchors, faces, prediction)
    # An anchor that several faces chose goes to the one with the higher score.
    value, index = torch.where(chosen, score, score.new_tensor(-torch.inf)).max(dim=1)
    return torch.where(value > -torch.inf, index, result)


def _atss(anchors: Tensor, levels: Sequence[int], faces: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Adaptive training sample selection (Zhang et al., CVPR 2020): (chosen [A, G], IoU [A, G]).

    The k nearest anchors a level are candidates; of these, those over mean + deviation of their IoU whose centre lies
    in the face. A face too small for any centre keeps its best anchor.
    """
    iou = pairwise_iou(anchors, faces)
    centers, face_centers = (anchors[:, :2] + anchors[:, 2:]) / 2, (faces[:, :2] + faces[:, 2:]) / 2
    distance = torch.cdist(centers, face_centers)
    parts = torch.split(distance, list(levels))
    starts = torch.tensor([0, *levels]).cumsum(0).tolist()
    nearest = torch.cat(
        [part.topk(min(k, len(part)), dim=0, largest=False).indices + s for part, s in zip(parts, starts, strict=False)]
    )
    near = iou.gather(0, nearest)
    threshold = near.mean(dim=0) + near.std(dim=0)
    candidate = torch.zeros_like(iou, dtype=torch.bool).scatter_(0, nearest, near >= threshold)
    chosen = candidate & _inside(centers, faces)
    best = iou.argmax(dim=0)
    chosen[best, torch.arange(len(faces), device=faces.device)] |= ~chosen.any(dim=0)
    return chosen, iou


def _simota(anchors: Tensor, faces: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
    """SimOTA (Ge et al., YOLOX, 2021): (chosen [A, G], minus the cost [A, G]).

    Anchors whose centre lies in a face or near its centre compete by the cost of their prediction; a face takes as many
    as its ten best predicted boxes overlap it in sum, at least one.
    """
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    face_centers = (faces[:, :2] + faces[:, 2:]) / 2
    radius = (anchors[:, 2:] - anchors[:, :2]).prod(dim=-1).sqrt() * _CENTER_RADIUS
    inside = _inside(centers, faces)
    close = (centers[:, None] - face_centers[None]).abs().amax(dim=-1) < radius[:, None]
    allowed = (inside | close).any(dim=1)
    iou = pairwise_iou(prediction.boxes, faces) * allowed[:, None]
    face_cost = F.softplus(-prediction.logits)[:, None]  # -log of the score
    cost = face_cost - _SIMOTA_IOU_WEIGHT * torch.log(iou + 1e-8) + _OUTSIDE * ~(inside & close)
    cost = cost.masked_fill(~allowed[:, None], 1e9)
    counts = iou.topk(min(_SIMOTA_TOP, len(iou)), dim=0).values.sum(dim=0).int().clamp(min=1)
    order = cost.topk(int(counts.max()), dim=0, largest=False).indices
    wanted = torch.arange(len(order), device=anchors.device)[:, None] < counts
    chosen = torch.zeros_like(iou, dtype=torch.bool).scatter_(0, order, wanted)
    return chosen & allowed[:, None], -cost


def _inside(centers: Tensor, faces: Tensor) -> Tensor:
    """Which centres [A, 2] lie in which faces [G, 4]: bool [A, G]."""
    low = (centers[:, None] > faces[None, :, :2]).all(dim=-1)
    high = (centers[:, None] < faces[None, :, 2:]).all(dim=-1)
    return low & high
