"""PAFPN: a feature pyramid network followed by a bottom-up path."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from training.models.necks.base import ConvNorm
from training.models.necks.fpn import FPN
from training.models.necks.pyramid import nearest_like


class PAFPN(nn.Module):
    """FPN's P, then N(i+1) = P(i+1) + 3x3 stride 2 of N(i), and a 3x3 on all but the lowest (CVPR 2018)."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        upper = range(len(in_channels) - 1)
        self.fpn = FPN(in_channels, out_channels)
        self.down = nn.ModuleList(ConvNorm(out_channels, out_channels, 3, stride=2) for _ in upper)
        self.smooth = nn.ModuleList(ConvNorm(out_channels, out_channels, 3) for _ in upper)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps: list[Tensor] = self.fpn(features)
        for i, down in enumerate(self.down):
            maps[i + 1] = maps[i + 1] + nearest_like(down(maps[i]), maps[i + 1])
        return [maps[0], *(smooth(x) for smooth, x in zip(self.smooth, maps[1:], strict=True))]
