"""The search spaces that the paper compares with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.training.searching import (
    AVG,
    DIL3,
    DIL5,
    MAX,
    NONE,
    OTHERS,
    SEP3,
    SEP5,
    SKIP,
    SMALL,
    SOMEHOW,
    WIDTHS,
    chances,
    one_hot,
    pyramid,
    set_arch,
    stir,
)
from training.models.genotype import (
    load_genotype,
    parse,
    save_genotype,
)
from training.models.necks import NECKS, NeckOptions, build_neck
from training.models.necks.base import resize_like
from training.models.necks.primitives import PRIMITIVES, build_kept, build_primitive
from training.models.necks.searched import CellEnhancement, FullyConnectedFusion
from training.models.operations import Float32Conv2d
from training.search.cells import CellSearch
from training.search.fully_connected import AUTO_FPN, FullyConnectedSearch
from training.search.mixed import MixedEdge, shuffle_order, strongest, top_edges
from training.search.space import AutoFAESearch, SpaceConfig
from training.search.spaces import SPACES, build_space, random_genotype_of


@pytest.mark.parametrize("name", PRIMITIVES)
@pytest.mark.parametrize("width", [1, 3, 8])
def test_a_primitive_keeps_the_size(name: str, width: int) -> None:
    operation = build_primitive(name, width)
    for size in ((1, 1), (3, 5), (8, 7)):
        assert operation(torch.randn(2, width, *size)).shape == (2, width, *size)


def test_primitives_have_the_layers_of_darts() -> None:
    def kinds(name: str) -> list[str]:
        return [type(layer).__name__ for layer in build_primitive(name, 4).modules() if not list(layer.children())]

    once = ["ReLU", "Conv2d", "Conv2d", "BatchNorm2d"]
    assert kinds("sep_conv_3x3") == kinds("sep_conv_5x5") == once * 2
    assert kinds("dil_conv_3x3") == kinds("dil_conv_5x5") == ["ReLU", "Float32Conv2d", "Conv2d", "BatchNorm2d"]
    count = {name: sum(p.numel() for p in build_primitive(name, 4).parameters()) for name in PRIMITIVES}
    assert count == {
        "none": 0, "skip_connect": 0, "max_pool_3x3": 8, "avg_pool_3x3": 8,
        "sep_conv_3x3": 2 * (4 * 9 + 16 + 8), "sep_conv_5x5": 2 * (4 * 25 + 16 + 8),
        "dil_conv_3x3": 4 * 9 + 16 + 8, "dil_conv_5x5": 4 * 25 + 16 + 8,
    }  # fmt: skip
    dilated = next(m for m in build_primitive("dil_conv_5x5", 4).modules() if isinstance(m, Float32Conv2d))
    assert (dilated.dilation, dilated.padding, dilated.groups) == ((2, 2), (4, 4), 4)
    x = torch.arange(4.0).view(1, 1, 2, 2).expand(1, 4, 2, 2)
    pooled = build_primitive("avg_pool_3x3", 4).eval()(x)  # the border is not counted: all see the same four pixels
    assert torch.allclose(pooled, torch.full_like(x, 1.5), atol=1e-4)
    assert torch.equal(build_primitive("none", 4)(x), torch.zeros_like(x))
    with pytest.raises(ValueError, match=r"leaves an edge out"):
        build_kept("none", 4)
    with pytest.raises(ValueError, match=r"no operation 'conv3x3'; there are none, "):
        build_primitive("conv3x3", 4)


@pytest.mark.parametrize("width", [4, 16])
def test_gradients_of_dilated_operations_hold_in_bfloat16(width: int) -> None:
    """oneDNN's own were wrong at 40x40."""
    torch.manual_seed(0)
    operation = build_primitive("dil_conv_5x5", width).to(memory_format=torch.channels_last)
    x = torch.randn(1, width, 40, 40).contiguous(memory_format=torch.channels_last)
    direction = torch.randn(1, width, 40, 40)
    gradients = []
    for enabled in (False, True):
        operation.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = operation(x)
        torch.autograd.backward((out.float() * direction).sum())
        gradients.append([p.grad.clone() for p in operation.parameters() if p.grad is not None])
    for exact, rounded in zip(*gradients, strict=True):
        assert float((exact - rounded).norm() / exact.norm()) < 0.05


def test_partial_channels_by_hand() -> None:
    """Eight channels of one pixel each: two are operated on, six bypass; four groups of two are dealt out in turn."""
    mixed = MixedEdge(8, PRIMITIVES, partial=True)
    x = torch.arange(1.0, 9.0).view(1, 8, 1, 1)
    out = mixed.eval()(x, torch.tensor(one_hot(SKIP)) * 0.5)
    assert out.flatten().tolist() == [0.5, 3, 5, 7, 1, 4, 6, 8]
    nothing = mixed(x, torch.tensor(one_hot(NONE)))
    assert nothing.flatten().tolist() == [0, 3, 5, 7, 0, 4, 6, 8]
    even = MixedEdge(6, PRIMITIVES, partial=True).eval()  # one channel of six; groups (1, 2), (3, 4), (5, 6)
    dealt = even(torch.arange(1.0, 7.0).view(1, 6, 1, 1), torch.tensor(one_hot(SKIP)))
    assert dealt.flatten().tolist() == [1, 3, 5, 2, 4, 6]
    for channels in range(1, 20):
        assert sorted(shuffle_order(channels)) == list(range(channels))
    for channels in (4, 8, 16, 20):
        places = F.channel_shuffle(torch.arange(channels).view(1, -1, 1, 1).float(), 4).flatten().tolist()
        assert shuffle_order(channels) == places
    odd = MixedEdge(3, PRIMITIVES, partial=True).eval()  # one channel of three, nothing to shuffle
    assert odd(torch.ones(1, 3, 1, 1), torch.tensor(one_hot(SKIP)) * 3).flatten().tolist() == [3, 1, 1]


def test_a_mixture_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    mixed = MixedEdge(3, PRIMITIVES, partial=False).eval()
    x, weights = torch.randn(2, 3, 5, 4), torch.rand(8)
    expected = torch.zeros_like(x)
    for name in PRIMITIVES[1:]:
        expected = expected + weights[PRIMITIVES.index(name)] * mixed.operations[PRIMITIVES.index(name)](x)
    assert torch.allclose(mixed(x, weights), expected, atol=1e-6)
    norms = [m for m in mixed.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2 + 2 * 2 + 2
    assert not any(norm.affine for norm in norms)  # a scale would take part in the competition


def test_the_best_operation_is_never_none() -> None:
    weights = chances(sep_conv_3x3=0.1, max_pool_3x3=0.05)
    assert strongest(5, weights, PRIMITIVES) == (5, "sep_conv_3x3", 0.1)
    assert strongest(5, weights, PRIMITIVES, share=0.5) == (5, "sep_conv_3x3", 0.05)
    ranked = [strongest(k, chances(skip_connect=v), PRIMITIVES) for k, v in enumerate((0.2, 0.1, 0.3, 0.05))]
    assert [edge.source for edge in top_edges(ranked)] == [0, 2]
    assert [edge.source for edge in top_edges(ranked, 1)] == [2]
    assert top_edges(ranked[3:]) == ranked[3:]


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("width", [1, 7, 8])
def test_a_space_keeps_every_size_at_any_width(name: str, width: int) -> None:
    neck = build_space(name, WIDTHS, width, SMALL).eval()
    for size in ((33, 65), (50, 39)):
        maps = pyramid(*size)
        with torch.no_grad():
            assert [x.shape for x in neck(maps)] == [(1, width, *x.shape[2:]) for x in maps]
            assert [x.shape for x in neck.derive().eval()(maps)] == [(1, width, *x.shape[2:]) for x in maps]


def test_six_levels_have_thirty_six_edges() -> None:
    neck = build_space("darts-fa", (1,) * 6, 1, SpaceConfig())
    assert sorted(neck.arch) == sorted(f"alpha_P{s}_P{t}" for s in range(2, 8) for t in range(2, 8))
    cell = build_space("pc-darts-fe", (1,) * 6, 1, SpaceConfig())  # shared by the levels: 2 + 3 + 4 + 5 edges
    alphas = {f"alpha_{j}_{i}" for i in range(2, 6) for j in range(i)}
    assert len(alphas) == 14
    assert set(cell.arch) == alphas | {f"beta_{i}" for i in range(2, 6)}
    assert [len(cell.arch[f"beta_{i}"]) for i in range(2, 6)] == [2, 3, 4, 5]


@pytest.mark.parametrize("name", OTHERS)
def test_the_gradient_reaches_every_weight_and_the_architecture(name: str) -> None:
    torch.manual_seed(0)
    neck = build_space(name, WIDTHS, 8, SMALL).train()
    out = neck(pyramid(70, 66, batch=2))
    torch.autograd.backward(torch.stack([(x * torch.randn_like(x)).sum() for x in out]).sum())
    for parameter, tensor in neck.named_parameters():
        assert tensor.grad is not None, parameter
        assert bool(tensor.grad.isfinite().all()), parameter
        assert float(tensor.grad.abs().max()) > 0, parameter


@pytest.mark.parametrize("name", OTHERS)
def test_probabilities_are_distributions(name: str) -> None:
    neck = build_space(name, WIDTHS, 4, SMALL)
    found = neck.probabilities()
    assert set(found) == set(neck.arch)
    for name_, values in found.items():
        assert not values.requires_grad
        assert torch.allclose(values, neck.arch[name_].detach().exp() / neck.arch[name_].detach().exp().sum())


def test_darts_keeps_two_edges_a_level() -> None:
    neck = FullyConnectedSearch((1, 1, 1), 2, "darts", (2, 3, 4))
    values = {
        "alpha_P2_P2": chances(skip_connect=0.2, sep_conv_3x3=0.1),  # none has 0.7, and is passed over
        "alpha_P3_P2": chances(dil_conv_5x5=0.3),
        "alpha_P4_P2": chances(max_pool_3x3=0.1),
        "alpha_P2_P3": chances(avg_pool_3x3=0.4, skip_connect=0.3),
        "alpha_P3_P3": chances(sep_conv_5x5=0.35),
        "alpha_P4_P3": chances(sep_conv_5x5=0.5),
    }
    set_arch(neck, values)
    genotype = neck.genotype(SOMEHOW)
    assert [[(e.source, e.operation) for e in edges] for edges in genotype.edges[:2]] == [
        [(2, "skip_connect"), (3, "dil_conv_5x5")],
        [(2, "avg_pool_3x3"), (4, "sep_conv_5x5")],
    ]
    assert [e.strength for e in genotype.edges[0]] == pytest.approx([0.2, 0.3])
    assert [len(edges) for edges in genotype.edges] == [2, 2, 2]


def test_pc_darts_ranks_edges_by_alpha_and_beta() -> None:
    neck = FullyConnectedSearch((1, 1, 1), 4, "pc-darts", (2, 3, 4))
    values = {f"alpha_P{s}_P2": chances(skip_connect=v) for s, v in ((2, 0.9), (3, 0.5), (4, 0.4))}
    set_arch(neck, {**values, "beta_P2": [0.1, 0.3, 0.6]})  # products 0.09, 0.15, 0.24: the best alpha is left out
    edges = neck.genotype(SOMEHOW).edges[0]
    assert [(e.source, e.operation) for e in edges] == [(3, "skip_connect"), (4, "skip_connect")]
    assert [e.strength for e in edges] == pytest.approx([0.15, 0.24])
    cell = CellSearch((1,), 4, "pc-darts", (2,), nodes=2)
    values = {f"alpha_{j}_3": chances(sep_conv_3x3=v) for j, v in ((0, 0.9), (1, 0.5), (2, 0.4))}
    set_arch(cell, {**values, "beta_3": [0.1, 0.3, 0.6]})
    assert [(e.input, e.operation) for e in cell.genotype(SOMEHOW).nodes[1]] == [
        (1, "sep_conv_3x3"), (2, "sep_conv_3x3"),
    ]  # fmt: skip


def test_auto_fpn_keeps_the_edges_that_beat_none() -> None:
    neck = FullyConnectedSearch((1, 1, 1), 2, "auto-fpn", (2, 3, 4))
    assert AUTO_FPN == ("none", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
    none, skip = [0.7, 0.1, 0.1, 0.02, 0.05, 0.03], [0.2, 0.5, 0.1, 0.05, 0.1, 0.05]
    values = {f"alpha_P{s}_P2": skip for s in (2, 3, 4)}
    values |= {
        "alpha_P2_P3": none,
        "alpha_P3_P3": [0.3, 0.3, 0.1, 0.1, 0.1, 0.1],
        "alpha_P4_P3": [0.28, 0.24, 0.1, 0.05, 0.29, 0.04],
    }
    values |= {"alpha_P2_P4": none, "alpha_P3_P4": [0.6, 0.05, 0.1, 0.04, 0.2, 0.01], "alpha_P4_P4": none}
    set_arch(neck, values)
    assert [[(e.source, e.operation) for e in edges] for edges in neck.genotype(SOMEHOW).edges] == [
        [(2, "skip_connect"), (3, "skip_connect"), (4, "skip_connect")],
        [(4, "dil_conv_3x3")],
        [(3, "dil_conv_3x3")],  # nothing beats none: the strongest stays
    ]


def test_beta_weighs_the_edges_of_a_level() -> None:
    """With `none` everywhere, a PC edge is its bypass, so the sum before the output is known."""
    neck = FullyConnectedSearch((4, 4), 4, "pc-darts", (2, 3)).eval()
    set_arch(neck, {f"alpha_P{s}_P{t}": one_hot(NONE) for s in (2, 3) for t in (2, 3)} | {"beta_P3": [0.25, 0.75]})
    maps = [torch.rand(1, 4, 4, 4), torch.rand(1, 4, 2, 2)]
    seen: list[Tensor] = []
    neck.post["P3"].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        fine, coarse = neck.lateral(maps)
        neck(maps)
    total = 0.25 * F.max_pool2d(fine, 2) + 0.75 * coarse
    total[:, 0] = 0.0  # one channel of four is operated on, and stands first in the shuffle of four groups of one
    assert torch.allclose(seen[0], total, atol=1e-6)


def test_a_derived_fusion_is_the_search_network_with_one_hot_alphas() -> None:
    torch.manual_seed(0)
    neck = FullyConnectedSearch(WIDTHS, 6, "darts", (2, 3, 4))
    stir(neck)
    kept = {(2, 2): SEP3, (4, 2): MAX, (2, 3): DIL5, (3, 3): AVG, (2, 4): SEP5, (3, 4): SKIP}
    set_arch(neck, {f"alpha_P{s}_P{t}": one_hot(kept.get((s, t), NONE)) for s in (2, 3, 4) for t in (2, 3, 4)})
    derived = neck.eval().derive().eval()
    assert isinstance(derived, FullyConnectedFusion)
    maps = pyramid(50, 39)
    with torch.no_grad():
        searched, discrete = neck(maps), derived(maps)
        lateral = dict(zip((2, 3, 4), neck.lateral(maps), strict=True))
        for k, target in enumerate((2, 3, 4)):
            total = torch.zeros(1, 6, *maps[k].shape[2:])
            for (source, to), operation in kept.items():
                if to == target:
                    mixed = neck.edges[f"P{source}_P{target}"]
                    assert isinstance(mixed, MixedEdge)
                    total += mixed.operations[operation](resize_like(lateral[source], maps[k]))
            assert torch.allclose(discrete[k], neck.post[f"P{target}"](total), atol=1e-5)
            assert torch.allclose(discrete[k], searched[k], atol=1e-5)


def test_a_derived_cell_is_the_search_network_with_one_hot_alphas() -> None:
    torch.manual_seed(0)
    neck = CellSearch(WIDTHS, 6, "darts", (2, 3, 4), nodes=3)
    stir(neck)
    kept = {(0, 2): SEP3, (1, 2): DIL3, (0, 3): AVG, (2, 3): SKIP, (1, 4): MAX, (3, 4): SEP5}
    set_arch(neck, {f"alpha_{j}_{i}": one_hot(kept.get((j, i), NONE)) for i in (2, 3, 4) for j in range(i)})
    genotype = neck.genotype(SOMEHOW)
    assert [[(e.input, PRIMITIVES.index(e.operation)) for e in edges] for edges in genotype.nodes] == [
        [(0, SEP3), (1, DIL3)], [(0, AVG), (2, SKIP)], [(1, MAX), (3, SEP5)],
    ]  # fmt: skip
    derived = neck.eval().derive().eval()
    assert isinstance(derived, CellEnhancement)
    maps = pyramid(50, 39)
    with torch.no_grad():
        searched, discrete = neck(maps), derived(maps)
    for mine, theirs in zip(searched, discrete, strict=True):
        assert float(mine.abs().max()) > 0
        assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("name", ["pc-darts-fa", "pc-darts-fe"])
def test_partial_operations_start_afresh_in_the_derived_neck(name: str) -> None:
    torch.manual_seed(0)
    neck = build_space(name, WIDTHS, 8, SMALL)
    stir(neck)
    derived = neck.derive()
    mine, theirs = neck.state_dict(), derived.state_dict()
    shared = [key for key in theirs if key.startswith("lateral.")]
    assert shared
    assert all(torch.equal(mine[key], theirs[key]) for key in shared)
    again = neck.derive().state_dict()
    assert any(not torch.equal(again[key], theirs[key]) for key in theirs if key not in shared)


def test_the_output_of_a_partial_fusion_meets_its_channels_in_their_places() -> None:
    """The search convolves shuffled channels, the derived neck plain ones, with the same weights for each."""
    torch.manual_seed(0)
    neck = FullyConnectedSearch(WIDTHS, 8, "pc-darts", (2, 3, 4)).eval()
    derived = neck.derive().eval()
    assert isinstance(derived, FullyConnectedFusion)
    x = torch.randn(1, 8, 5, 4)
    with torch.no_grad():
        for k, level in enumerate((2, 3, 4)):
            assert torch.allclose(derived.post[k](x), neck.post[f"P{level}"](F.channel_shuffle(x, 4)), atol=1e-5)


@pytest.mark.parametrize("name", SPACES)
def test_a_genotype_survives_json_and_builds_its_neck(name: str, tmp_path: Path) -> None:
    genotype = random_genotype_of(name, SMALL, 3)
    assert parse(genotype.model_dump_json()) == genotype
    save_genotype(tmp_path / "g.json", genotype)
    assert load_genotype(tmp_path / "g.json") == genotype
    neck = build_neck(name, WIDTHS, 6, NeckOptions(genotype=genotype.model_dump_json())).eval()
    maps = pyramid(33, 65)
    with torch.no_grad():
        assert [x.shape for x in neck(maps)] == [(1, 6, *x.shape[2:]) for x in maps]
    assert NECKS[name].searched


@pytest.mark.parametrize("name", SPACES)
def test_random_genotypes_differ_by_seed_and_are_the_same_for_one(name: str) -> None:
    first, same, other = (random_genotype_of(name, SMALL, seed) for seed in (0, 0, 1))
    assert first == same
    assert first.provenance.method == "random"
    assert first.model_dump(exclude={"provenance"}) != other.model_dump(exclude={"provenance"})


def test_spaces_are_named() -> None:
    assert ("autofa", "autofe", "autofae", *OTHERS) == SPACES
    for part in ("autofa", "autofe", "autofae"):
        neck = build_space(part, WIDTHS, 2, SMALL)
        assert isinstance(neck, AutoFAESearch)
        assert neck.config.part == part
    for make in (lambda: build_space("enas", WIDTHS, 2, SMALL), lambda: random_genotype_of("enas", SMALL, 0)):
        with pytest.raises(ValueError, match=r"no space 'enas'; there are autofa, "):
            make()
    for name in OTHERS:
        with pytest.raises(ValueError, match=r"2 maps for the levels \(2, 3, 4\)"):
            build_space(name, (1, 1), 2, SMALL)
