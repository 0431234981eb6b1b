"""The prediction head: n repeated 3x3 convolutions for each of classification and regression, shared by all levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

PRIOR_PROBABILITY = 0.01


class Tower(nn.Module):
    """n convolutions whose weights all levels share, while each level keeps batch-norm statistics of its own.

    Maps of different strides have different statistics; separate norms cost nothing once folded for inference.
    """

    def __init__(self, channels: int, convs: int, levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(convs))
        self.norms = nn.ModuleList(nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(convs)) for _ in range(levels))

    def forward(self, x: Tensor, level: int) -> Tensor:
        norms = self.norms[level]
        assert isinstance(norms, nn.ModuleList)
        for conv, norm in zip(self.convs, norms, strict=True):
            x = torch.relu(norm(conv(x)))
        return x


class Head(nn.Module):
    """forward: six maps [N, C, h, w] -> (logits [N, A], deltas [N, A, 4]), A cells in all, finest level first."""

    def __init__(self, channels: int, convs: int, levels: int = 6) -> None:
        super().__init__()
        self.cls_tower = Tower(channels, convs, levels)
        self.box_tower = Tower(channels, convs, levels)
        self.cls_logits = nn.Conv2d(channels, 1, 3, padding=1)
        self.box_deltas = nn.Conv2d(channels, 4, 3, padding=1)
        for conv in (self.cls_logits, self.box_deltas):
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        assert self.cls_logits.bias is not None
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits, deltas = [], []
        for level, x in enumerate(features):
            logits.append(self.cls_logits(self.cls_tower(x, level)).flatten(1))
            boxes = self.box_deltas(self.box_tower(x, level))
            deltas.append(boxes.flatten(2).transpose(1, 2))
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)
