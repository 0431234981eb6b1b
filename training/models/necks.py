"""Necks: a neck turns the backbone's six maps into six maps of one width.

Any `nn.Module` that is built from `(in_channels, out_channels)` and maps a list of six tensors to a list of six
tensors of the same resolutions, `out_channels` wide, fits the slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

NeckBuilder = Callable[[Sequence[int], int], nn.Module]


class ConvNorm(nn.Sequential):
    """Convolution and batch norm, with ReLU unless `relu` is off."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, relu: bool = True) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        if relu:
            layers.append(nn.ReLU())
        super().__init__(*layers)


class FPN(nn.Module):
    """Feature pyramid network: 1x1 laterals, nearest up-sampling and addition from the top down, 3x3 at the end.

    Laterals carry batch norm and ReLU as in the authors' earlier release.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(ConvNorm(c, out_channels, 1) for c in in_channels)
        self.smooth = nn.ModuleList(ConvNorm(out_channels, out_channels, 3) for _ in in_channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for i in range(len(maps) - 2, -1, -1):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], size=maps[i].shape[-2:], mode="nearest")
        return [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]
