"""RetinaNet without FPN, but for one level that is aggregated with one other: Table 1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from training.models.necks.base import LEVELS, ConvNorm, Laterals
from training.models.necks.pyramid import nearest_like


class PairAggregation(nn.Module):
    """Laterals, then 3x3(level + source at the level's size) on one level; the others stay laterals (Table 1).

    pair: (level, source), pyramid levels from 2, the row and the column of the table. A source above comes down by
    nearest up-sampling, as in FPN; one below comes up by repeated 2x2 max-pooling. Raises ValueError where `pair` is
    missing, out of range, or names one level twice.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, pair: tuple[int, int] | None) -> None:
        super().__init__()
        lowest, highest = LEVELS[0], LEVELS[0] + len(in_channels) - 1
        if pair is None:
            raise ValueError("the neck 'pair' needs its option `pair`: (level, source), such as (2, 3)")
        if not all(lowest <= level <= highest for level in pair):
            raise ValueError(f"pair {pair} names a level that is not among {lowest}..{highest}")
        if pair[0] == pair[1]:
            raise ValueError(f"pair {pair} aggregates a level with itself; the neck 'none' is Table 1's diagonal")
        self.level, self.source = pair[0] - lowest, pair[1] - lowest
        self.lateral = Laterals(in_channels, out_channels)
        self.smooth = ConvNorm(out_channels, out_channels, 3)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps: list[Tensor] = self.lateral(features)
        level = maps[self.level]
        maps[self.level] = self.smooth(level + nearest_like(maps[self.source], level))
        return maps
