"""Feature enhancement: one module on each level by itself, between the backbone and the head (Tables 2 and 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from training.models.necks.base import LEVELS, Laterals
from training.models.necks.context import CPM, FEMCPM
from training.models.necks.fpn import FPN
from training.models.necks.receptive_field import ASPP, RFB, RFE

# Each takes a width and gives a module that maps [N, width, h, w] to the same shape.
ENHANCEMENTS: dict[str, Callable[[int], nn.Module]] = {
    "aspp": ASPP,
    "rfb": RFB,
    "cpm": CPM,
    "fem-cpm": FEMCPM,
    "rfe": RFE,
}


class EnhancementNeck(nn.Module):
    """Laterals, then `module` on the named levels with weights of their own; the other levels stay laterals.

    levels: pyramid levels from 2 (finest), none named: all; on_fpn: FPN takes the laterals' place. Raises ValueError
    for a level that there is not.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        module: Callable[[int], nn.Module],
        levels: Sequence[int] = (),
        on_fpn: bool = False,
    ) -> None:
        super().__init__()
        present = range(LEVELS[0], LEVELS[0] + len(in_channels))
        if unknown := [level for level in levels if level not in present]:
            raise ValueError(f"no pyramid level {unknown[0]} to enhance; there are {present[0]}..{present[-1]}")
        self.lateral = FPN(in_channels, out_channels) if on_fpn else Laterals(in_channels, out_channels)
        self.enhance = nn.ModuleList(
            module(out_channels) if not levels or level in levels else nn.Identity() for level in present
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [enhance(x) for enhance, x in zip(self.enhance, self.lateral(features), strict=True)]
