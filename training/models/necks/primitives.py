"""DARTS's eight primitives at stride 1 (Liu et al., ICLR 2019, section 3.1.1; facts, section 3), for any width.

Batch norms follow pooling, as in DARTS's search. DARTS drops them from the network that it evaluates; here they stay,
so that a searched operation and the one derived from it are the same function.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.models.operations import Float32Conv2d

NONE, SKIP = "none", "skip_connect"
PRIMITIVES = (
    NONE, "max_pool_3x3", "avg_pool_3x3", SKIP, "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip


class Zero(nn.Module):
    """`none`: no connection."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class ReLUConvNorm(nn.Sequential):
    """ReLU, convolution, batch norm, in DARTS's order: [N, in, h, w] -> [N, out, h, w]. The preprocessing of cells."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, affine: bool = True) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(out_channels, affine=affine),
        )


class DepthwiseSeparable(nn.Sequential):
    """ReLU, depthwise convolution, 1x1, batch norm: `dil_conv` with dilation 2, half of `sep_conv` with dilation 1."""

    def __init__(self, channels: int, kernel: int, dilation: int, affine: bool = True) -> None:
        # oneDNN (torch 2.15) gives wrong or NaN gradients for depthwise dilated convolutions in bfloat16, channels
        # last, on 40x40 maps at every width from 4 to 64 that was tried, multiples of 16 among them.
        depthwise = Float32Conv2d if dilation > 1 else nn.Conv2d
        super().__init__(
            nn.ReLU(),
            depthwise(channels, channels, kernel, padding=kernel // 2 * dilation, dilation=dilation, groups=channels,
                      bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )  # fmt: skip


def build_primitive(name: str, channels: int, affine: bool = True) -> nn.Module:
    """A primitive by DARTS's name: [N, C, h, w] -> [N, C, h, w].

    affine: whether norms have weights of their own. A search leaves them out, as DARTS does, since they could undo what
    the architecture parameters weigh; the discrete form has them, after pooling too, since the export of a norm without
    them fails where it does not know the channels. Raises ValueError where there is no such primitive.
    """
    if name == NONE:
        return Zero()
    if name == SKIP:
        return nn.Identity()
    if name == "max_pool_3x3":
        return nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(channels, affine=affine))
    if name == "avg_pool_3x3":
        pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        return nn.Sequential(pool, nn.BatchNorm2d(channels, affine=affine))
    if name in ("sep_conv_3x3", "sep_conv_5x5"):
        kernel = int(name[-1])
        return nn.Sequential(*(DepthwiseSeparable(channels, kernel, 1, affine) for _ in range(2)))
    if name in ("dil_conv_3x3", "dil_conv_5x5"):
        return DepthwiseSeparable(channels, int(name[-1]), 2, affine)
    raise ValueError(f"no operation {name!r}; there are {', '.join(PRIMITIVES)}")


def build_kept(name: str, channels: int) -> nn.Module:
    """A primitive of a discrete architecture. Raises ValueError on `none`, which is no edge, and on unknown names."""
    if name == NONE:
        raise ValueError("a discrete architecture leaves an edge out instead of giving it the operation 'none'")
    return build_primitive(name, channels)
