"""What every neck shares: its options, its description, and the layers it begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = (2, 3, 4, 5, 6, 7)  # P2 .. P7, strides 4 .. 128


@dataclass(frozen=True)
class NeckOptions:
    """What some necks can be told beyond their width; the others take no notice.

    levels: the pyramid levels (2 .. 7) that an enhancement acts on, none named: all (Table 2); for a searched neck,
    those of its genotype that there are maps of.
    on_fpn: an enhancement stands on FPN (Table 2) instead of on plain laterals (Table 4).
    pair: (level, source) of the one aggregation of `pair` (Table 1).
    genotype: JSON of the genotype of a searched neck, empty: the one in `training/genotypes`.
    modules: for each stacked AutoFAE module, whether AutoFE is kept (Table 7's FAE and FA).
    """

    levels: tuple[int, ...] = ()
    on_fpn: bool = False
    pair: tuple[int, int] | None = None
    genotype: str = ""
    modules: tuple[bool, ...] = ()


NeckBuilder = Callable[[Sequence[int], int, NeckOptions], nn.Module]
NeckKind = Literal["aggregation", "enhancement", "both"]


@dataclass(frozen=True)
class NeckInfo:
    """One neck of the comparison. source: where its structure comes from; liberties: what is ours, in words."""

    name: str
    kind: NeckKind
    build: NeckBuilder
    source: str
    liberties: str = ""
    searched: bool = False


class ConvNorm(nn.Sequential):
    """Convolution and batch norm, with ReLU unless `relu` is off. Keeps the resolution at stride 1."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, relu: bool = True, stride: int = 1, groups: int = 1
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        if relu:
            layers.append(nn.ReLU())
        super().__init__(*layers)


class Laterals(nn.ModuleList):
    """1x1 convolution, batch norm and ReLU a level, as in the authors' earlier release: maps of any widths to one."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__(ConvNorm(c, out_channels, 1) for c in in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [lateral(x) for lateral, x in zip(self, features, strict=True)]


def resize_like(x: Tensor, target: Tensor, upwards: Literal["bilinear", "nearest"] = "bilinear") -> Tensor:
    """f_re of Eq. 1: x brought to the resolution of `target`, bilinear (or nearest) upwards, repeated 2x2
    max-pooling downwards.

    Pooling rounds odd sizes up, as the backbone's strides do, so that it ends at `target`'s size on any pyramid; where
    the sizes are those of no pyramid, bilinear interpolation makes up the rest.
    """
    size = target.shape[-2:]
    while x.shape[-2] > size[0] or x.shape[-1] > size[1]:
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
    if x.shape[-2:] != size:
        x = F.interpolate(x, size=size, mode=upwards, align_corners=False if upwards == "bilinear" else None)
    return x
