"""Anchors: one per cell on six levels (paper, section 5.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor


@dataclass(frozen=True)
class AnchorConfig:
    """The anchor's area is (size_factor * stride)^2 and its height is `ratio` times its width.

    The paper prints the scales {4..128}, which are the strides; its authors' earlier release has 4 x stride.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    size_factor: float = 4.0
    ratio: float = 1.5


def level_anchors(height: int, width: int, stride: int, config: AnchorConfig, device: torch.device) -> Tensor:
    """Anchors of one level, row by row: float32 [height * width, 4] as x1 y1 x2 y2 in input pixels."""
    side = config.size_factor * stride
    half_w, half_h = side / sqrt(config.ratio) / 2, side * sqrt(config.ratio) / 2
    # Counted in whole numbers, as sizes are: exported, the ranges then need no sizes in floating point.
    ys = (torch.arange(height, device=device).float() + 0.5) * stride
    xs = (torch.arange(width, device=device).float() + 0.5) * stride
    cy, cx = torch.meshgrid(ys, xs, indexing="ij")
    boxes = torch.stack((cx - half_w, cy - half_h, cx + half_w, cy + half_h), dim=-1)
    return boxes.reshape(-1, 4)


def pyramid_anchors(sizes: Sequence[tuple[int, int]], config: AnchorConfig, device: torch.device) -> Tensor:
    """All anchors of a pyramid. sizes: (height, width) of each level, finest first -> float32 [A, 4]."""
    if len(sizes) != len(config.strides):
        raise ValueError(f"{len(sizes)} pyramid levels, but {len(config.strides)} strides")
    levels = [level_anchors(h, w, s, config, device) for (h, w), s in zip(sizes, config.strides, strict=True)]
    return torch.cat(levels)
