"""NAS-FPN: seven merging cells, stacked seven times, found by reinforcement learning on COCO."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.models.necks.base import Laterals
from training.models.necks.pyramid import FinestLevel, nearest_like, require_six_levels

_REPEATS = 7
_CELLS = ("4a", "4b", "3", "4", "5", "7", "6")


def add_resized(x1: Tensor, x2: Tensor, target: Tensor) -> Tensor:
    """The sum operation: both inputs at the resolution of `target`, added."""
    return nearest_like(x1, target) + nearest_like(x2, target)


def global_pooling(x1: Tensor, x2: Tensor, target: Tensor) -> Tensor:
    """The global-pooling operation, both inputs at the resolution of `target`: x2 + sigmoid(mean of x2) x1.

    The mean is over each channel's pixels, so that x2 says how much of every channel of x1 comes in.
    """
    x1, x2 = nearest_like(x1, target), nearest_like(x2, target)
    return x2 + torch.sigmoid(x2.mean((2, 3), keepdim=True)) * x1


class _ReLUConvNorm(nn.Sequential):
    """ReLU, 3x3, batch norm: the order of the original, which leaves maps that a further merge can add to."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))


class NASFPNStage(nn.Module):
    """One repetition of the seven merging cells on P3..P7: five maps [N, channels, ...] in, five out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cells = nn.ModuleDict({name: _ReLUConvNorm(channels) for name in _CELLS})

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor, p6: Tensor, p7: Tensor) -> tuple[Tensor, ...]:
        p4a = self.cells["4a"](global_pooling(p6, p4, p4))
        p4b = self.cells["4b"](add_resized(p4a, p4, p4))
        p3 = self.cells["3"](add_resized(p4b, p3, p3))
        p4 = self.cells["4"](add_resized(p3, p4b, p4))
        # The inner merges of 5 and 7 have no convolution of their own.
        p5 = self.cells["5"](add_resized(p5, global_pooling(p4, p3, p5), p5))
        p7 = self.cells["7"](add_resized(p7, global_pooling(p5, p4b, p7), p7))
        p6 = self.cells["6"](global_pooling(p7, p5, p6))
        return p3, p4, p5, p6, p7


class NASFPN(nn.Module):
    """Seven repetitions of the cells on P3..P7 (Ghiasi et al., CVPR 2019), and FPN's step from the last P3 to P2.

    Raises ValueError unless there are six levels.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, repeats: int = _REPEATS) -> None:
        super().__init__()
        require_six_levels("NAS-FPN", in_channels)
        self.lateral = Laterals(in_channels, out_channels)
        self.stages = nn.ModuleList(NASFPNStage(out_channels) for _ in range(repeats))
        self.finest = FinestLevel(out_channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        p2, *upper = self.lateral(features)
        for stage in self.stages:
            upper = stage(*upper)
        return [self.finest(p2, upper[0]), *upper]
