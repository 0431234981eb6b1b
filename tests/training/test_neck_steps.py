"""The distinctive step of each hand-crafted neck, against values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.models.necks.bifpn import BiFPN, FusionNode, fast_fusion
from training.models.necks.branches import split_channels
from training.models.necks.enhancement import ENHANCEMENTS
from training.models.necks.fem_fpn import FEMFPN
from training.models.necks.nas_fcos import NASFCOS, ConcatCell
from training.models.necks.nas_fpn import NASFPNStage, global_pooling
from training.models.necks.pafpn import PAFPN
from training.models.necks.pair import PairAggregation
from training.models.necks.pyramid import nearest_like
from training.models.necks.receptive_field import ASPP, RFB, RFE

WIDTHS = (6, 8, 12, 16, 8, 6)
SIZES = ((25, 17), (13, 9), (7, 5), (4, 3), (2, 2), (1, 1))  # of a picture of 97x65


def constants(*values: float, channels: int = 2) -> list[Tensor]:
    """Maps of one value each, of a 256x256 picture's levels from the finest on."""
    return [torch.full((1, channels, 64 >> i, 64 >> i), float(v)) for i, v in enumerate(values)]


def without_layers(neck: Any, *names: str) -> Any:
    """The neck with those of its layers (or lists of layers) passing on what they get."""
    for name in names:
        layer = getattr(neck, name)
        lists = isinstance(layer, nn.ModuleList) and name != "lateral"
        setattr(neck, name, nn.ModuleList(nn.Identity() for _ in layer) if lists else nn.Identity())
    return neck.eval()


def values(maps: Sequence[Tensor]) -> list[float]:
    """The one value of each map, which must be constant up to rounding."""
    assert all(float((x.max() - x.min()).detach()) < 1e-5 for x in maps)
    return [float(x.detach().mean()) for x in maps]


def test_nearest_like_repeats_upwards_and_takes_the_largest_downwards() -> None:
    x = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    up = nearest_like(x, torch.zeros(1, 1, 4, 6))[0, 0]
    assert up[0].tolist() == up[1].tolist() == [1, 1, 2, 2, 3, 3]
    assert nearest_like(x, torch.zeros(1, 1, 1, 2)).tolist() == [[[[5, 6]]]]
    assert nearest_like(x[:, :, :1], torch.zeros(1, 1, 1, 2)).tolist() == [[[[2, 3]]]]  # one pixel high already


def test_shares_of_a_width_sum_to_it() -> None:
    assert split_channels(24, (2, 1, 1)) == [12, 6, 6]
    assert split_channels(10, (1, 1, 1, 1)) == [3, 2, 3, 2]
    assert split_channels(1, (2, 1, 1)) == [1, 0, 0]
    assert all(sum(split_channels(width, (2, 1, 1))) == width for width in range(1, 70))


def test_pafpn_adds_from_the_bottom_up() -> None:
    neck = without_layers(PAFPN((2, 2, 2), 2), "smooth", "fpn")
    neck.down = nn.ModuleList(nn.MaxPool2d(2) for _ in range(2))
    assert values(neck(constants(1, 10, 100))) == [1, 11, 111]


def test_fast_fusion_by_hand() -> None:
    inputs = [torch.full((1, 1, 2, 2), v) for v in (2.0, 4.0, 100.0)]
    fused = fast_fusion(torch.tensor([1.0, 3.0, -2.0]), inputs)
    assert values([fused]) == pytest.approx([(1 * 2 + 3 * 4 + 0 * 100) / (1 + 3 + 0 + 1e-4)])


def test_a_bifpn_node_applies_swish_before_its_convolution() -> None:
    node = FusionNode(2, nn.Identity())
    x = torch.full((1, 1, 1, 1), 3.0)
    mean = 6 / 2.0001
    assert node(x, x).item() == pytest.approx(mean / (1 + math.exp(-mean)), rel=1e-6)


def test_bifpn_connects_levels_in_both_directions() -> None:
    class Add(nn.Module):
        def forward(self, *maps: Tensor) -> Tensor:
            return torch.stack(maps).sum(0)

    neck = BiFPN((2, 2, 2, 2), 2)
    assert [len(node.weights) for node in (*neck.top_down, *neck.bottom_up)] == [2, 2, 2, 3, 3, 2]
    neck = without_layers(neck, "lateral")
    neck.top_down = nn.ModuleList(Add() for _ in range(3))
    neck.bottom_up = nn.ModuleList(Add() for _ in range(3))
    # From the top down 1111, 1110, 1100; then each level's own, middle and lower node.
    assert values(neck(constants(1, 10, 100, 1000))) == [1111, 10 + 1110 + 1111, 100 + 1100 + 2231, 1000 + 3431]


def test_fem_fpn_multiplies_three_levels_and_leaves_three() -> None:
    neck = without_layers(FEMFPN(WIDTHS, 2), "lateral", "upper")
    assert values(neck(constants(2, 3, 4, 5, 6, 7))) == [120, 60, 20, 5, 6, 7]


def test_global_pooling_by_hand() -> None:
    x1 = torch.tensor([[[[8.0]], [[8.0]]]])
    x2 = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]]])  # channels of mean 2 and 0
    out = global_pooling(x1, x2, x2)
    gate = 1 / (1 + math.exp(-2))
    assert out[0, 0, 0].tolist() == pytest.approx([1 + 8 * gate, 3 + 8 * gate])
    assert out[0, 1, 0].tolist() == [4.0, 4.0]


def test_nas_fpn_merges_in_the_published_order() -> None:
    def gp(x1: float, x2: float) -> float:
        return x2 + x1 / (1 + math.exp(-x2))

    stage = NASFPNStage(2)
    stage.cells = nn.ModuleDict({name: nn.Identity() for name in stage.cells})
    p3, p4, p5, p6, p7 = 0.3, -0.4, 0.5, -0.6, 0.7
    first = gp(p6, p4)
    second = first + p4
    n3 = second + p3
    n4 = n3 + second
    n5 = p5 + gp(n4, n3)
    n7 = p7 + gp(n5, second)
    n6 = gp(n7, n5)
    assert values(stage(*constants(p3, p4, p5, p6, p7))) == pytest.approx([n3, n4, n5, n6, n7], rel=1e-5)


def test_a_concatenating_cell_mixes_pairs_of_channels_at_the_finer_size() -> None:
    cell = ConcatCell(2, second_conv=False)
    cell.first, cell.norm = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    nn.init.ones_(cell.mix.weight)
    coarse, fine = torch.tensor([[[[1.0]], [[2.0]]]]), torch.tensor([[[[10.0, -5.0]], [[20.0, 30.0]]]])
    assert cell(coarse, fine)[0].tolist() == [[[3, 3]], [[30, 30]]]  # relu(1) + relu(2), then 10 + 20, 0 + 30


def test_nas_fcos_connects_the_published_cells() -> None:
    class Add(nn.Module):
        def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
            larger = max(x1, x2, key=lambda x: x.shape[-1])
            return nearest_like(x1, larger) + nearest_like(x2, larger)

    neck = without_layers(NASFCOS(WIDTHS, 2), "lateral")
    neck.cells = nn.ModuleList(Add() for _ in range(7))
    neck.finest.smooth = nn.Identity()
    for conv in neck.down:
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    # f0, f1, f2 = 1, 2, 4; f3 = f4 = 8; f5 = 8 + 4; f6 = 1 + 4; f7 = 8 + 4; f8 = 8 + 5; f9 = 5 + 2; then + f5.
    assert values(neck(constants(100, 1, 2, 4, 6, 7))) == [100 + 19, 7 + 12, 13 + 12, 12 + 12, 6, 7]


def test_nas_fcos_makes_its_coarsest_levels_of_the_ones_below() -> None:
    neck = NASFCOS(WIDTHS, 4).eval()
    for conv, value in zip(neck.down, (3.0, 5.0), strict=True):
        nn.init.zeros_(conv.weight)  # type: ignore[arg-type]
        nn.init.constant_(conv.bias, value)  # type: ignore[arg-type]
    maps = [torch.randn(2, c, *size) for c, size in zip(WIDTHS, SIZES, strict=True)]
    with torch.no_grad():
        out, laterals = neck(maps), neck.lateral(maps)
    torch.testing.assert_close(out[4:], [laterals[4] + 3, laterals[5] + 5])


def test_a_pair_adds_the_resized_source() -> None:
    fine, coarse = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[[[10.0]]]])
    down = without_layers(PairAggregation((1, 1), 1, (2, 3)), "lateral", "smooth")
    assert [x.tolist() for x in down([fine, coarse])] == [[[[[11, 12], [13, 14]]]], [[[[10]]]]]
    up = without_layers(PairAggregation((1, 1), 1, (3, 2)), "lateral", "smooth")
    assert [x.tolist() for x in up([fine, coarse])] == [fine.tolist(), [[[[14]]]]]


def reach(module: nn.Module, channels: int, side: int = 25) -> list[set[tuple[int, int]]]:
    """For each output channel, the offsets at which one lit pixel shows, with every weight 1 and every bias 0."""
    for name, tensor in module.named_parameters():
        nn.init.constant_(tensor, 0.0 if name.endswith("bias") else 1.0)
    x = torch.zeros(1, channels, side, side)
    x[:, :, side // 2, side // 2] = 1
    with torch.no_grad():
        out = module.eval()(x)[0]
    return [{(int(r) - side // 2, int(c) - side // 2) for r, c in channel.nonzero()} for channel in out]


def square(radius: int, step: int = 1) -> set[tuple[int, int]]:
    offsets = range(-radius, radius + 1, step)
    return {(r, c) for r in offsets for c in offsets}


@pytest.mark.parametrize(("name", "radii"), [("cpm", (1, 1, 2, 3)), ("fem-cpm", (1, 1, 3, 5))])
def test_context_modules_see_as_far_as_published(name: str, radii: tuple[int, ...]) -> None:
    assert reach(ENHANCEMENTS[name](4), 4) == [square(radius) for radius in radii]


def test_aspp_sees_its_dilations_and_the_whole_picture() -> None:
    assert reach(ASPP(4), 4) == [square(0), square(3, 3), square(6, 6), square(12)]


def test_aspp_pools_the_mean_of_each_channel() -> None:
    module = ASPP(4)
    assert module.pooled is not None
    nn.init.constant_(module.pooled[0].weight, 1.0)  # type: ignore[arg-type]
    nn.init.constant_(module.pooled[0].bias, 0.5)  # type: ignore[arg-type]
    x = torch.arange(24.0).reshape(1, 4, 2, 3)  # means 2.5, 8.5, 14.5, 20.5
    with torch.no_grad():
        assert values([module(x)[0, 3]]) == [46.5]


def test_rfb_adds_a_tenth_of_its_branches_to_the_shortcut() -> None:
    module = RFB(8).eval()
    for part, value in ((module.shortcut, 1.0), (module.merge, 5.0)):
        nn.init.zeros_(part[1].weight)  # type: ignore[arg-type]
        nn.init.constant_(part[1].bias, value)  # type: ignore[arg-type]
    with torch.no_grad():
        assert values([module(torch.randn(1, 8, 3, 5))]) == pytest.approx([1 + 0.1 * 5])
        nn.init.constant_(module.merge[1].bias, -50.0)  # type: ignore[arg-type]
        assert values([module(torch.randn(1, 8, 3, 5))]) == [0.0]


def test_rfb_branches_see_as_far_as_published() -> None:
    far = [set.union(*reach(branch, 8)) for branch in RFB(8).branches]
    # 3x3; 3x3 and one of dilation 2; two 3x3 and one of dilation 3.
    assert far == [square(1), square(3), square(5)]


def test_rfe_adds_rectangular_fields_to_its_input() -> None:
    module = RFE(4)
    shapes = [set.union(*reach(branch, 4)) for branch in module.branches]
    across = [{(0, c) for c in range(-r, r + 1)} for r in (2, 1)]
    down = [{(c, r) for r, c in line} for line in across]
    assert shapes == [across[0], down[0], across[1], down[1]]
    x = torch.randn(1, 4, 5, 7)
    nn.init.zeros_(module.merge[0].weight)  # type: ignore[arg-type]
    nn.init.constant_(module.merge[0].bias, 0.25)  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(module(x), x + 0.25)
        nn.init.constant_(module.merge[0].bias, -0.25)  # type: ignore[arg-type]
        assert torch.equal(module(x), x)  # the ReLU comes before the addition
