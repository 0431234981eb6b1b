"""The convolutions that AutoFE chooses from (paper, section 4.1.2)."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

_NAME = re.compile(r"conv([1-9])x([1-9])(?:d([2-9]))?")

# The seven of section 4.1.2, and the dilated ones that Fig. 6 shows in deep levels.
PLAIN = ("conv1x1", "conv1x3", "conv3x1", "conv3x3", "conv1x5", "conv5x1", "conv5x5")
DILATED = ("conv3x3d2", "conv5x5d2", "conv3x3d3", "conv5x5d3")
OPERATIONS = PLAIN + DILATED


class Operation(NamedTuple):
    """A kernel's height and width, and its dilation."""

    height: int
    width: int
    dilation: int


def parse_operation(name: str) -> Operation:
    """`conv3x5d2` -> (3, 5, 2). Raises ValueError on anything else, and on even sides, which would shift the map."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"no operation {name!r}; one is written as conv3x3, or conv3x3d2 with dilation 2")
    height, width, dilation = int(found[1]), int(found[2]), int(found[3] or 1)
    if height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"operation {name!r} has an even side")
    return Operation(height, width, dilation)


# oneDNN (torch 2.15 on an AMD EPYC, November 2026) gives NaN gradients for dilated convolutions in bfloat16, channels
# last, whose width is no multiple of 16.
_SAFE_MULTIPLE = 16


class Float32Conv2d(nn.Conv2d):
    """A convolution that is computed in float32 even under autocast on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class ConvOperation(nn.Sequential):
    """Convolution, batch norm, ReLU: [N, C, h, w] -> [N, C, h, w]."""

    def __init__(self, channels: int, name: str) -> None:
        height, width, dilation = parse_operation(name)
        padding = (height // 2 * dilation, width // 2 * dilation)
        convolution = Float32Conv2d if dilation > 1 and channels % _SAFE_MULTIPLE else nn.Conv2d
        super().__init__(
            convolution(channels, channels, (height, width), padding=padding, dilation=dilation, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
