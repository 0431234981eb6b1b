"""The neck of NAS-FCOS: seven concatenating cells, found by reinforcement learning on VOC and COCO."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.necks.base import ConvNorm, Laterals
from training.models.necks.pyramid import FinestLevel, nearest_like, require_six_levels

# The two inputs of f3 .. f9, where f0, f1, f2 are the laterals of levels 3, 4, 5; and whether the second is convolved.
_CELLS = ((2, 2, True), (2, 2, True), (3, 2, False), (0, 2, False), (4, 2, True), (3, 6, True), (6, 1, True))
_OUTPUTS = (9, 8, 7)  # P3, P4, P5
_SHARED = 5  # added to each of them


def bilinear_like(x: Tensor, target: Tensor) -> Tensor:
    return F.interpolate(x, size=target.shape[-2:], mode="bilinear", align_corners=False)


class ConcatCell(nn.Module):
    """3x3 on the first input, and on the second unless it is a skip; the smaller one nearest-upsampled to the larger;
    both concatenated; batch norm, ReLU, and a 1x1 in `channels` groups, so that each output mixes two channels."""

    def __init__(self, channels: int, second_conv: bool) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels, 3)
        self.second = ConvNorm(channels, channels, 3) if second_conv else nn.Identity()
        self.norm = nn.BatchNorm2d(2 * channels)
        self.mix = nn.Conv2d(2 * channels, channels, 1, groups=channels, bias=False)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """x1, x2: [N, channels, ...] of any two levels -> [N, channels, ...] at the resolution of the finer."""
        x1, x2 = self.first(x1), self.second(x2)
        larger = x1 if x1.shape[-2] * x1.shape[-1] >= x2.shape[-2] * x2.shape[-1] else x2
        both = torch.cat((nearest_like(x1, larger), nearest_like(x2, larger)), dim=1)
        mixed: Tensor = self.mix(torch.relu(self.norm(both)))
        return mixed


class NASFCOS(nn.Module):
    """P3, P4, P5 = f9, f8, f7, each plus f5, of seven concatenating cells on levels 3 to 5 (Wang et al., CVPR 2020).

    P6 and P7 are 3x3 stride 2 of the level below, to which the backbone's levels 6 and 7 are added here; P2 is FPN's
    step down from P3. Raises ValueError unless there are six levels.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        require_six_levels("NAS-FCOS", in_channels)
        self.lateral = Laterals(in_channels, out_channels)
        self.cells = nn.ModuleList(ConcatCell(out_channels, second_conv) for _, _, second_conv in _CELLS)
        self.down = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1) for _ in range(2))
        self.finest = FinestLevel(out_channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        laterals: list[Tensor] = self.lateral(features)
        nodes = laterals[1:4]
        for (first, second, _), cell in zip(_CELLS, self.cells, strict=True):
            nodes.append(cell(nodes[first], nodes[second]))
        maps = []
        for lateral, output in zip(laterals[1:4], _OUTPUTS, strict=True):
            # f8 is as fine as P3, hence the second resizing, to its own level.
            summed = nodes[output] + bilinear_like(nodes[_SHARED], nodes[output])
            maps.append(bilinear_like(summed, lateral))
        maps.append(laterals[4] + nearest_like(self.down[0](maps[-1]), laterals[4]))
        maps.append(laterals[5] + nearest_like(self.down[1](torch.relu(maps[-1])), laterals[5]))
        return [self.finest(laterals[0], maps[0]), *maps]
