"""FEM-FPN: the aggregating half of DSFD's feature enhance module."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from training.models.necks.base import ConvNorm, Laterals
from training.models.necks.pyramid import require_six_levels

_ENHANCED = 3  # P2, P3 and P4


class FEMFPN(nn.Module):
    """P(i) = lateral(i) x bilinear up-sampling of 1x1(P(i+1)) for P4, P3, P2 in turn (Li et al., CVPR 2019).

    The laterals are the 1x1 on the current map. P5, P6 and P7 leave as the laterals made them. Raises ValueError
    unless there are six levels.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        require_six_levels("FEM-FPN", in_channels)
        self.lateral = Laterals(in_channels, out_channels)
        self.upper = nn.ModuleList(ConvNorm(out_channels, out_channels, 1) for _ in range(_ENHANCED))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps: list[Tensor] = self.lateral(features)
        for i in reversed(range(_ENHANCED)):
            upper = self.upper[i](maps[i + 1])
            size = maps[i].shape[-2:]
            maps[i] = maps[i] * F.interpolate(upper, size=size, mode="bilinear", align_corners=False)
        return maps
