"""Box arithmetic: pairwise IoU, and the coding of a box relative to its anchor (variances 0.1 and 0.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CENTER_VARIANCE = 0.1
SIZE_VARIANCE = 0.2
_MAX_LOG_SCALE = math.log(1000 / 16)


def _centers(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sizes = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + sizes / 2, sizes


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """boxes, anchors: [..., 4] x1 y1 x2 y2 -> deltas [..., 4] (dx, dy, dw, dh) in units of the variances."""
    centers, sizes = _centers(boxes)
    anchor_centers, anchor_sizes = _centers(anchors)
    shift = (centers - anchor_centers) / anchor_sizes / CENTER_VARIANCE
    scale = torch.log(sizes.clamp(min=1e-3) / anchor_sizes) / SIZE_VARIANCE
    return torch.cat((shift, scale), dim=-1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of `encode`: deltas [..., 4], anchors [..., 4] -> boxes [..., 4] x1 y1 x2 y2."""
    anchor_centers, anchor_sizes = _centers(anchors)
    centers = anchor_centers + deltas[..., :2] * CENTER_VARIANCE * anchor_sizes
    scale = (deltas[..., 2:] * SIZE_VARIANCE).clamp(max=_MAX_LOG_SCALE)
    half = torch.exp(scale) * anchor_sizes / 2
    return torch.cat((centers - half, centers + half), dim=-1)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """a: [..., M, 4], b: [..., N, 4] -> IoU [..., M, N]. Empty boxes overlap nothing."""
    top_left = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    bottom_right = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    area_a = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(dim=-1)
    area_b = (b[..., 2:] - b[..., :2]).clamp(min=0).prod(dim=-1)
    return inter / (area_a[..., :, None] + area_b[..., None, :] - inter).clamp(min=1e-9)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """a, b: [..., 4] -> IoU of each with its partner [...]."""
    return pairwise_iou(a[..., None, :], b[..., None, :])[..., 0, 0]
