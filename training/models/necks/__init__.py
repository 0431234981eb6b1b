"""Necks: a neck turns the backbone's maps into as many maps of one width.

Any `nn.Module` that maps a list of tensors to a list of tensors of the same resolutions, `out_channels` wide, fits the
slot. To add one: write its module in a file of its own and add a line to `_ALL`; `python -m training necks` lists it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from training.models.necks.base import NeckBuilder, NeckInfo, NeckOptions, resize_like
from training.models.necks.fpn import FPN, NoAggregation

__all__ = ["NECKS", "NeckBuilder", "NeckInfo", "NeckOptions", "build_neck", "resize_like"]

_ALL = (
    NeckInfo("none", "aggregation", lambda i, o, _: NoAggregation(i, o), "RetinaNet without FPN (paper, Table 1)",
             "laterals carry batch norm and ReLU"),
    NeckInfo("fpn", "aggregation", lambda i, o, _: FPN(i, o), "Lin et al., CVPR 2017; torchvision's structure",
             "laterals and 3x3 carry batch norm and ReLU"),
)  # fmt: skip

NECKS: dict[str, NeckInfo] = {neck.name: neck for neck in _ALL}


def build_neck(
    name: str, in_channels: Sequence[int], out_channels: int, options: NeckOptions | None = None
) -> nn.Module:
    """A neck by name, with fresh weights. Raises ValueError where there is no such neck, or its options are wrong."""
    if name not in NECKS:
        raise ValueError(f"no neck {name!r}; there are {', '.join(NECKS)}")
    if out_channels < 1:
        raise ValueError(f"a neck must be at least one channel wide, not {out_channels}")
    return NECKS[name].build(in_channels, out_channels, options or NeckOptions())
