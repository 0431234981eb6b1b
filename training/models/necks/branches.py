"""What modules of parallel branches are made of: a biased convolution with ReLU, and shares of a width."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


class ConvReLU(nn.Sequential):
    """Convolution with bias, and ReLU; keeps the resolution. kernel: height and width, odd, or one number for both.

    No batch norm, since the published modules that are built from it have none.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], dilation: int = 1) -> None:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2 * dilation, width // 2 * dilation)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, (height, width), padding=padding, dilation=dilation), nn.ReLU()
        )


def split_channels(channels: int, shares: Sequence[int]) -> list[int]:
    """Widths in the proportion of `shares` that sum to `channels` exactly, the earlier ones rounded up.

    In a width below the number of shares some are 0: whoever calls this leaves those branches out.
    """
    whole = sum(shares)
    bounds = [-(-channels * sum(shares[:i]) // whole) for i in range(len(shares) + 1)]
    return [after - before for before, after in pairwise(bounds)]
