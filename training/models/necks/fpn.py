"""No aggregation at all, and the feature pyramid network: the two base lines of the paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from training.models.necks.base import ConvNorm, Laterals


class NoAggregation(nn.Module):
    """RetinaNet without FPN: laterals alone."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.lateral = Laterals(in_channels, out_channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps: list[Tensor] = self.lateral(features)
        return maps


class FPN(nn.Module):
    """Feature pyramid network: 1x1 laterals, nearest up-sampling and addition from the top down, 3x3 at the end."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.lateral = Laterals(in_channels, out_channels)
        self.smooth = nn.ModuleList(ConvNorm(out_channels, out_channels, 3) for _ in in_channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps = self.lateral(features)
        for i in range(len(maps) - 2, -1, -1):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], size=maps[i].shape[-2:], mode="nearest")
        return [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]
