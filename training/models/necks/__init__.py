"""Necks: a neck turns the backbone's maps into as many maps of one width.

Any `nn.Module` that maps a list of tensors to a list of tensors of the same resolutions, `out_channels` wide, fits the
slot. To add one: write its module in a file of its own and add a line to `_ALL`; `python -m training necks` lists it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from training.models.necks.autofae import build_autofae
from training.models.necks.base import NeckBuilder, NeckInfo, NeckOptions, resize_like
from training.models.necks.bifpn import ABiFPN, BiFPN
from training.models.necks.enhancement import ENHANCEMENTS, EnhancementNeck
from training.models.necks.fem_fpn import FEMFPN
from training.models.necks.fpn import FPN, NoAggregation
from training.models.necks.nas_fcos import NASFCOS
from training.models.necks.nas_fpn import NASFPN
from training.models.necks.pafpn import PAFPN
from training.models.necks.pair import PairAggregation
from training.models.necks.searched import build_cells, build_fusion

__all__ = ["NECKS", "NeckBuilder", "NeckInfo", "NeckOptions", "build_neck", "resize_like"]


def _enhancement(name: str) -> NeckBuilder:
    return lambda i, o, x: EnhancementNeck(i, o, ENHANCEMENTS[name], x.levels, x.on_fpn)


_ALL = (
    NeckInfo("none", "aggregation", lambda i, o, _: NoAggregation(i, o), "RetinaNet without FPN (paper, Table 1)",
             "laterals carry batch norm and ReLU"),
    NeckInfo("fpn", "aggregation", lambda i, o, _: FPN(i, o), "Lin et al., CVPR 2017; torchvision's structure",
             "laterals and 3x3 carry batch norm and ReLU"),
    NeckInfo("pafpn", "aggregation", lambda i, o, _: PAFPN(i, o), "Liu et al., CVPR 2018; mmdetection's structure",
             "every convolution carries batch norm and ReLU"),
    NeckInfo("bifpn", "aggregation", lambda i, o, _: BiFPN(i, o), "EfficientDet: Tan et al., CVPR 2020",
             "one repetition"),
    NeckInfo("abifpn", "aggregation", lambda i, o, _: ABiFPN(i, o), "ACFD: Zhang et al., arXiv 2007.00899",
             "its abstract names it and no code was found: BiFPN with summed depthwise 3x3, 1x3 and 3x1, each with "
             "batch norm (ACNet), is our reading of the name; one repetition"),
    NeckInfo("fem-fpn", "aggregation", lambda i, o, _: FEMFPN(i, o), "DSFD: Li et al., CVPR 2019",
             "the laterals are the 1x1 on the current map; 1x1s carry batch norm and ReLU; levels 5 to 7 are laterals"),
    NeckInfo("nas-fpn", "aggregation", lambda i, o, _: NASFPN(i, o), "Ghiasi et al., CVPR 2019; mmdetection's cells",
             "a five-level design: its cells see P3..P7, and P2 comes from the last P3 by FPN's step; levels 6 and 7 "
             "are the backbone's, not pooled from P5"),
    NeckInfo("nas-fcos", "aggregation", lambda i, o, _: NASFCOS(i, o), "Wang et al., CVPR 2020; mmdetection's cells",
             "a five-level design: its cells make P3, P4, P5, and P2 comes from P3 by FPN's step; the backbone's "
             "levels 6 and 7 are added to P6 and P7; plain 3x3 instead of deformable ones"),
    NeckInfo("pair", "aggregation", lambda i, o, x: PairAggregation(i, o, x.pair), "paper, Table 1",
             "max-pooling (2x2, repeated) from the bottom up, nearest from the top down; a 3x3 on the one level"),
    NeckInfo("aspp", "enhancement", _enhancement("aspp"),
             "DetectoRS: Qiao et al., CVPR 2021", "behind laterals, as every enhancement here"),
    NeckInfo("rfb", "enhancement", _enhancement("rfb"),
             "RFBNet: Liu et al., ECCV 2018"),
    NeckInfo("cpm", "enhancement", _enhancement("cpm"),
             "SSH: Najibi et al., ICCV 2017; PyramidBox: Tang et al., ECCV 2018",
             "SSH's context module, which PyramidBox's text builds on, without PyramidBox's deeper prediction layers"),
    NeckInfo("fem-cpm", "enhancement", _enhancement("fem-cpm"),
             "DSFD: Li et al., CVPR 2019", "the width stays, where DSFD widens to 512"),
    NeckInfo("rfe", "enhancement", _enhancement("rfe"),
             "SRN: Chi et al., AAAI 2019; RefineFace: Zhang et al., TPAMI 2020"),
    NeckInfo("autofa", "aggregation", lambda i, o, x: build_autofae("autofa", i, o, x), "paper, section 4.1.1",
             "f_pre is a 1x1 and f_post a 3x3, with batch norm and ReLU; the first step of a path is f_post alone",
             searched=True),
    NeckInfo("autofe", "enhancement", lambda i, o, x: build_autofae("autofe", i, o, x), "paper, section 4.1.2",
             "four nodes, the input counted; every operation is followed by batch norm and ReLU", searched=True),
    NeckInfo("autofae", "both", lambda i, o, x: build_autofae("autofae", i, o, x), "paper, sections 4.1 and 5.2.3",
             "as autofa and autofe", searched=True),
    NeckInfo("darts-fa", "aggregation", lambda i, o, x: build_fusion("darts-fa", i, o, x),
             "DARTS: Liu et al., ICLR 2019, in the fully-connected space of Table 3",
             "an edge is a primitive of the source's lateral, resized before; the two strongest edges a level, then a "
             "3x3 with batch norm and ReLU; pooling keeps its batch norm", searched=True),
    NeckInfo("pc-darts-fa", "aggregation", lambda i, o, x: build_fusion("pc-darts-fa", i, o, x),
             "PC-DARTS: Xu et al., ICLR 2020, in the fully-connected space of Table 3",
             "as darts-fa", searched=True),
    NeckInfo("auto-fpn", "aggregation", lambda i, o, x: build_fusion("auto-fpn", i, o, x),
             "after Auto-FPN: Xu et al., ICCV 2019; its fusion, searched anew",
             "not the original's architecture, which is not to be had; the candidates (none, skip, separable and "
             "dilated 3x3 and 5x5) are our reading; the rest as darts-fa, with every edge that beats none",
             searched=True),
    NeckInfo("darts-fe", "enhancement", lambda i, o, x: build_cells("darts-fe", i, o, x),
             "DARTS: Liu et al., ICLR 2019; one cell a level",
             "behind laterals; both inputs of a cell are the level's map; a 1x1 with batch norm and ReLU brings the "
             "concatenated nodes back to the width; pooling keeps its batch norm", searched=True),
    NeckInfo("pc-darts-fe", "enhancement", lambda i, o, x: build_cells("pc-darts-fe", i, o, x),
             "PC-DARTS: Xu et al., ICLR 2020; one cell a level", "as darts-fe", searched=True),
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
