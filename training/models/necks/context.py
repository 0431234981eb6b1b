"""Context modules, which look around a face: CPM of SSH and PyramidBox, and FEM-CPM of DSFD."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.models.necks.branches import ConvReLU, split_channels


class CPM(nn.Module):
    """Half the channels see 3x3; a quarter each 5x5 and 7x7, as two and three 3x3 of which the first is shared.

    [N, channels, h, w] to the same (SSH's context module, Najibi et al., ICCV 2017; PyramidBox's CPM, ECCV 2018).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide, five, seven = split_channels(channels, (2, 1, 1))
        self.direct = ConvReLU(channels, wide, 3)
        self.reduce = ConvReLU(channels, five, 3) if five else None
        self.five = ConvReLU(five, five, 3) if five else None
        self.seven = nn.Sequential(ConvReLU(five, seven, 3), ConvReLU(seven, seven, 3)) if seven else None

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.direct(x)]
        if self.reduce is not None and self.five is not None:
            reduced = self.reduce(x)
            parts.append(self.five(reduced))
            if self.seven is not None:
                parts.append(self.seven(reduced))
        return torch.cat(parts, dim=1)


class FEMCPM(nn.Module):
    """The enhancing half of DSFD's feature enhance module (Li et al., CVPR 2019): dilated context.

    Half the channels see 3x3; the others start from a 3x3 of dilation 2 and see 7x7 and, through another of
    dilation 2, 11x11. [N, channels, h, w] to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        near, middle, far = split_channels(channels, (2, 1, 1))
        self.near = ConvReLU(channels, near, 3)
        self.wide = ConvReLU(channels, near, 3, dilation=2) if middle else None
        self.middle = ConvReLU(near, middle, 3) if middle else None
        self.far = nn.Sequential(ConvReLU(near, far, 3, dilation=2), ConvReLU(far, far, 3)) if far else None

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.near(x)]
        if self.wide is not None and self.middle is not None:
            wide = self.wide(x)
            parts.append(self.middle(wide))
            if self.far is not None:
                parts.append(self.far(wide))
        return torch.cat(parts, dim=1)
