"""Rotation of whole crops about their centre, a batch at once, on whatever device it lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from training.models.losses import Targets

_FILL = 110.0  # as the crops' own


@dataclass(frozen=True)
class RotationConfig:
    """share: probability of a crop; degrees: the angle is uniform in plus or minus this."""

    share: float = 0.0
    degrees: float = 20.0


def rotate(
    images: Tensor, targets: Sequence[Targets], config: RotationConfig, generator: Generator
) -> tuple[Tensor, list[Targets]]:
    """images: uint8 [N, 3, S, S] and their boxes -> the same, rotated. The generator lives on the CPU.

    A face is taken for the ellipse in its box, whose upright frame is the new box. Faces whose centre leaves the crop
    are ignored from then on.
    """
    chosen = torch.rand(len(images), generator=generator) < config.share
    angles = (torch.rand(len(images), generator=generator) * 2 - 1) * math.radians(config.degrees)
    index = chosen.nonzero().flatten().tolist()
    if not index:
        return images, list(targets)
    size = images.shape[-1]
    cos, sin = angles[index].cos(), angles[index].sin()
    zero = torch.zeros_like(cos)
    # grid_sample asks where each output pixel comes from: the inverse rotation.
    theta = torch.stack((torch.stack((cos, sin, zero), -1), torch.stack((-sin, cos, zero), -1)), 1).to(images.device)
    picked = images[index].float() - _FILL
    grid = F.affine_grid(theta, list(picked.shape), align_corners=False)
    turned = F.grid_sample(picked, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + _FILL
    out = images.clone()
    out[index] = turned.round().clamp(0, 255).to(images.dtype)
    moved = list(targets)
    for k in index:
        moved[k] = _turn_targets(targets[k], float(angles[k]), size)
    return out, moved


def _turn_targets(targets: Targets, angle: float, size: int) -> Targets:
    faces, ignored = turn_boxes(targets.faces, angle, size), turn_boxes(targets.ignored, angle, size)
    centers = (faces[:, :2] + faces[:, 2:]) / 2
    inside = ((centers >= 0) & (centers < size)).all(dim=1)
    faces, ignored = faces.clamp(0, size), ignored.clamp(0, size)
    return Targets(faces[inside], torch.cat((ignored, faces[~inside])))


def turn_boxes(boxes: Tensor, angle: float, size: int) -> Tensor:
    """boxes [n, 4] of a size x size picture turned by `angle` (radians, clockwise as seen) -> frames [n, 4]."""
    cos, sin = math.cos(angle), math.sin(angle)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 - size / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    x = centers[:, 0] * cos - centers[:, 1] * sin + size / 2
    y = centers[:, 0] * sin + centers[:, 1] * cos + size / 2
    a = ((half[:, 0] * cos) ** 2 + (half[:, 1] * sin) ** 2).sqrt()
    b = ((half[:, 0] * sin) ** 2 + (half[:, 1] * cos) ** 2).sqrt()
    return torch.stack((x - a, y - b, x + a, y + b), dim=1)
