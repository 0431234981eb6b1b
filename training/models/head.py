"""The prediction head: n repeated 3x3 convolutions for each of classification and regression, shared by all levels."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

PRIOR_PROBABILITY = 0.01
_GROUPS = 16

HeadNorm = Literal["batch", "group", "none"]


class Tower(nn.Module):
    """n convolutions whose weights all levels share.

    norm: `batch` keeps statistics a level, since maps of different strides differ, and costs nothing once folded for
    inference; `group` is one group norm that all levels share; `none` is the plain RetinaNet.
    """

    def __init__(self, channels: int, convs: int, levels: int, norm: HeadNorm = "batch") -> None:
        super().__init__()
        plain = norm == "none"
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=plain) for _ in range(convs))
        shared = [_norm(norm, channels) for _ in range(convs)]
        self.norms = nn.ModuleList(
            nn.ModuleList([_norm(norm, channels) for _ in range(convs)] if norm == "batch" else shared)
            for _ in range(levels)
        )

    def forward(self, x: Tensor, level: int) -> Tensor:
        norms = self.norms[level]
        assert isinstance(norms, nn.ModuleList)
        for conv, norm in zip(self.convs, norms, strict=True):
            x = torch.relu(norm(conv(x)))
        return x


def _norm(kind: HeadNorm, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(_GROUPS, channels), channels) if kind == "group" else nn.Identity()


class Head(nn.Module):
    """forward: six maps [N, C, h, w] -> (logits [N, A], deltas [N, A, 4], quality [N, A] or None).

    A cells in all, finest level first. quality: logits of the box's predicted IoU with its face, from the box tower,
    where `iou_branch` is on.
    """

    def __init__(
        self, channels: int, convs: int, levels: int = 6, norm: HeadNorm = "batch", iou_branch: bool = False
    ) -> None:
        super().__init__()
        self.cls_tower = Tower(channels, convs, levels, norm)
        self.box_tower = Tower(channels, convs, levels, norm)
        self.cls_logits = nn.Conv2d(channels, 1, 3, padding=1)
        self.box_deltas = nn.Conv2d(channels, 4, 3, padding=1)
        self.box_quality = nn.Conv2d(channels, 1, 3, padding=1) if iou_branch else None
        for conv in self.predictors():
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        assert self.cls_logits.bias is not None
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))

    def predictors(self) -> list[nn.Conv2d]:
        """The last convolutions, which have an initialisation of their own."""
        last = [self.cls_logits, self.box_deltas]
        return last if self.box_quality is None else [*last, self.box_quality]

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        logits, deltas, quality = [], [], []
        for level, x in enumerate(features):
            logits.append(self.cls_logits(self.cls_tower(x, level)).flatten(1))
            box_features = self.box_tower(x, level)
            deltas.append(self.box_deltas(box_features).flatten(2).transpose(1, 2))
            if self.box_quality is not None:
                quality.append(self.box_quality(box_features).flatten(1))
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1), torch.cat(quality, dim=1) if quality else None
