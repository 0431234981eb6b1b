"""What the aggregations share: how a map is brought to another level's size, and how many levels they take."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from training.models.necks.base import LEVELS, ConvNorm, resize_like


def nearest_like(x: Tensor, target: Tensor) -> Tensor:
    """x at the resolution of `target`: nearest neighbour upwards, repeated 2x2 max-pooling downwards."""
    return resize_like(x, target, "nearest")


def require_six_levels(neck: str, in_channels: Sequence[int]) -> None:
    """Raise ValueError unless there are the six levels P2 .. P7 that `neck` was laid out for."""
    if len(in_channels) != len(LEVELS):
        raise ValueError(f"{neck} needs the six levels P2..P7, not {len(in_channels)}; use fpn for another number")


class FinestLevel(nn.Module):
    """FPN's step from P3 to P2, by which a five-level design (P3..P7) gets its sixth level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.smooth = ConvNorm(channels, channels, 3)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """fine: the lateral of level 2; coarse: the finished P3. Both [N, channels, ...]; P2 has the size of `fine`."""
        finest: Tensor = self.smooth(fine + nearest_like(coarse, fine))
        return finest
