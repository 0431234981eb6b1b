"""BiFPN, and ABiFPN, its form with asymmetric convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.necks.base import Laterals
from training.models.necks.pyramid import nearest_like

_EPSILON = 1e-4


def fast_fusion(weights: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """Fast normalised fusion: sum of relu(w_i) / (sum of relu(w) + 1e-4) x input_i (EfficientDet, section 3.3).

    weights: [n], one for each of the n `inputs`, which have one shape among them and give the result's.
    """
    positive = weights.relu()
    shares = positive / (positive.sum() + _EPSILON)
    fused = shares[0] * inputs[0]
    for i in range(1, len(inputs)):
        fused = fused + shares[i] * inputs[i]
    return fused


class SeparableConv(nn.Sequential):
    """Depthwise 3x3, 1x1, batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )


class AsymmetricConv(nn.Module):
    """Depthwise 3x3, 1x3 and 3x1, summed; then 1x1 and batch norm.

    Each of the three has a batch norm of its own, as in ACNet (Ding et al., ICCV 2019): without, their sum would be
    one 3x3 written with more numbers.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, (h, w), padding=(h // 2, w // 2), groups=channels, bias=False),
                nn.BatchNorm2d(channels),
            )
            for h, w in ((3, 3), (1, 3), (3, 1))
        )
        self.pointwise = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        square, flat, tall = (conv(x) for conv in self.depthwise)
        mixed: Tensor = self.pointwise(square + flat + tall)
        return mixed


class FusionNode(nn.Module):
    """Fast normalised fusion of `inputs` maps of one shape, swish, convolution."""

    def __init__(self, inputs: int, conv: nn.Module) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.conv = conv

    def forward(self, *maps: Tensor) -> Tensor:
        out: Tensor = self.conv(F.silu(fast_fusion(self.weights, maps)))
        return out


class BiFPN(nn.Module):
    """One repetition of the bi-directional feature pyramid network (Tan et al., CVPR 2020).

    Top-down nodes fuse a level with the one above, nearest-upsampled; bottom-up nodes fuse a level, its top-down node
    and the level below, max-pooled 3x3 stride 2. The top level has no top-down node and the lowest no bottom-up one, so
    that both ends fuse two maps. conv: makes a node's convolution for a width. Raises ValueError for a single level.
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int, conv: Callable[[int], nn.Module] = SeparableConv
    ) -> None:
        super().__init__()
        levels = len(in_channels)
        if levels < 2:
            raise ValueError(f"BiFPN fuses neighbouring levels and needs two or more, not {levels}; use none for one")
        self.lateral = Laterals(in_channels, out_channels)
        self.top_down = nn.ModuleList(FusionNode(2, conv(out_channels)) for _ in range(levels - 1))
        self.bottom_up = nn.ModuleList(
            FusionNode(2 if level == levels - 1 else 3, conv(out_channels)) for level in range(1, levels)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        inputs: list[Tensor] = self.lateral(features)
        top = len(inputs) - 1
        middle = list(inputs)
        for i, node in reversed(list(enumerate(self.top_down))):
            middle[i] = node(inputs[i], F.interpolate(middle[i + 1], size=inputs[i].shape[-2:], mode="nearest"))
        outputs = [middle[0]]
        for i, node in enumerate(self.bottom_up, start=1):
            below = nearest_like(F.max_pool2d(outputs[-1], 3, 2, padding=1), inputs[i])
            outputs.append(node(inputs[i], below) if i == top else node(inputs[i], middle[i], below))
        return outputs


class ABiFPN(BiFPN):
    """Asymmetric bi-directional FPN: named, not described, by ACFD (Zhang et al., arXiv 2007.00899).

    There is no public code. BiFPN with `AsymmetricConv` in its nodes is our reading of the name.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__(in_channels, out_channels, AsymmetricConv)
