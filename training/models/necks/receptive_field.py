"""Modules that vary the receptive field in parallel branches: ASPP, RFB, RFE."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.models.necks.branches import ConvReLU, split_channels


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling as DetectoRS has it (Qiao et al., CVPR 2021).

    A quarter of the channels each from 1x1, 3x3 of dilation 3, 3x3 of dilation 6, and a 1x1 on the picture's mean.
    [N, channels, h, w] to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        *local, pooled = split_channels(channels, (1, 1, 1, 1))
        kernels = ((1, 1), (3, 3), (3, 6))
        self.local = nn.ModuleList(
            ConvReLU(channels, width, kernel, dilation)
            for width, (kernel, dilation) in zip(local, kernels, strict=True)
            if width
        )
        self.pooled = ConvReLU(channels, pooled, 1) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        parts = [conv(x) for conv in self.local]
        if self.pooled is not None:
            mean = self.pooled(x.mean((2, 3), keepdim=True))
            parts.append(mean.expand(-1, -1, x.shape[-2], x.shape[-1]))
        return torch.cat(parts, dim=1)


def _dilated(in_channels: int, out_channels: int, kernel: int, dilation: int = 1, relu: bool = True) -> nn.Sequential:
    padding = kernel // 2 * dilation
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(out_channels)]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


class RFB(nn.Module):
    """Receptive field block (Liu et al., ECCV 2018): three branches of dilation 1, 2, 3.

    relu(1x1 shortcut(x) + 0.1 x 1x1(branches)); each convolution has batch norm, and ReLU but for the dilated and the
    last ones. The unit of its widths is an eighth of the channels, one at least. [N, channels, h, w] to the same.
    """

    SCALE = 0.1

    def __init__(self, channels: int) -> None:
        super().__init__()
        unit = max(1, channels // 8)
        between = max(1, unit * 3 // 2)
        self.branches = nn.ModuleList(
            (
                nn.Sequential(_dilated(channels, 2 * unit, 1), _dilated(2 * unit, 2 * unit, 3, 1, relu=False)),
                nn.Sequential(
                    _dilated(channels, unit, 1),
                    _dilated(unit, 2 * unit, 3),
                    _dilated(2 * unit, 2 * unit, 3, 2, relu=False),
                ),
                nn.Sequential(
                    _dilated(channels, unit, 1),
                    _dilated(unit, between, 3),
                    _dilated(between, 2 * unit, 3),
                    _dilated(2 * unit, 2 * unit, 3, 3, relu=False),
                ),
            )
        )
        self.merge = _dilated(6 * unit, channels, 1, relu=False)
        self.shortcut = _dilated(channels, channels, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        merged = self.merge(torch.cat([branch(x) for branch in self.branches], dim=1))
        return torch.relu(self.shortcut(x) + self.SCALE * merged)


class RFE(nn.Module):
    """Receptive field enhancement (SRN, Chi et al., AAAI 2019; RefineFace): rectangular fields, added to the input.

    x + relu 1x1 of four branches, each 1x1, one of 1x5, 5x1, 1x3, 3x1, and 1x1, a quarter of the channels wide.
    No batch norm. [N, channels, h, w] to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = split_channels(channels, (1, 1, 1, 1))
        self.branches = nn.ModuleList(
            nn.Sequential(ConvReLU(channels, width, 1), ConvReLU(width, width, kernel), ConvReLU(width, width, 1))
            for width, kernel in zip(widths, ((1, 5), (5, 1), (1, 3), (3, 1)), strict=True)
            if width
        )
        self.merge = ConvReLU(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        merged: Tensor = self.merge(torch.cat([branch(x) for branch in self.branches], dim=1))
        return x + merged
