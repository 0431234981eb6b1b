"""Rotation of whole crops about their centre, a batch at once, on whatever device it lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from training.data.dataset import FILL
from training.models.losses import Targets


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
    picked = images[index].float() - float(FILL)
    grid = F.affine_grid(theta, list(picked.shape), align_corners=False)
    turned = F.grid_sample(picked, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + float(FILL)
    out = images.clone()
    out[index] = turned.round().clamp(0, 255).to(images.dtype)
    moved = list(targets)
    for k in index:
        moved[k] = _turn_targets(targets[k], float(angles[k]), size)
    return out, moved


def _turn_targets(targets: Targets, angle: float, size: int) -> Targets:
    faces, ignored = turn_boxes(targets.faces, angle, size), turn_boxes(targets.ignored, angle, size, filled=True)
    centers = (faces[:, :2] + faces[:, 2:]) / 2
    inside = ((centers >= 0) & (centers < size)).all(dim=1)
    faces, ignored = faces.clamp(0, size), ignored.clamp(0, size)
    return Targets(faces[inside], torch.cat((ignored, faces[~inside])))


def turn_boxes(boxes: Tensor, angle: float, size: int, filled: bool = False) -> Tensor:
    """boxes [n, 4] of a size x size picture turned by `angle` (radians, clockwise as seen) -> frames [n, 4].

    The frame is that of the ellipse in the box, or of the whole box where it is `filled`, as ignore regions are.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 - size / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    x = centers[:, 0] * cos - centers[:, 1] * sin + size / 2
    y = centers[:, 0] * sin + centers[:, 1] * cos + size / 2
    wide, tall = half[:, 0], half[:, 1]
    if filled:
        a, b = wide * abs(cos) + tall * abs(sin), wide * abs(sin) + tall * abs(cos)
    else:
        a, b = torch.hypot(wide * cos, tall * sin), torch.hypot(wide * sin, tall * cos)
    return torch.stack((x - a, y - b, x + a, y + b), dim=1)
