"""Genotypes as data, and the neck that is built from one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from training.models.genotype import (
    AutoFAEGenotype,
    Candidate,
    EnhancementCell,
    FusionCell,
    Node,
    Provenance,
    describe,
    load_genotype,
    parse,
    save_genotype,
)
from training.models.necks import NeckOptions, build_neck
from training.models.necks.autofae import AutoFAE, Enhancement, Fusion
from training.models.operations import ConvOperation, parse_operation
from training.search.space import AutoFAESearch, SpaceConfig, random_genotype

HAND = Provenance(method="hand")


def maps(height: int, width: int, channels: Sequence[int]) -> list[torch.Tensor]:
    sizes = [(-(-height // 2**k), -(-width // 2**k)) for k in range(2, 2 + len(channels))]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, c, h, w, generator=generator) for c, (h, w) in zip(channels, sizes, strict=True)]


def two_levels() -> AutoFAEGenotype:
    return AutoFAEGenotype(
        levels=(2, 3),
        top_down=(FusionCell(level=3), FusionCell(level=2, candidates=(Candidate(level=3, alpha=1.0),), beta=(2, 3))),
        bottom_up=(FusionCell(level=2), FusionCell(level=3, candidates=(Candidate(level=2, alpha=1.0),))),
        enhancement=tuple(
            EnhancementCell(
                level=level,
                nodes=(
                    Node(node=1, input=0, operation="conv1x3"),
                    Node(node=2, input=0, operation="conv3x3d2"),
                    Node(node=3, input=2, operation="conv1x1"),
                ),
            )
            for level in (2, 3)
        ),
        provenance=HAND,
    )


def test_json_round_trip_and_description(tmp_path: Path) -> None:
    genotype = random_genotype(SpaceConfig(), 5)
    save_genotype(tmp_path / "g.json", genotype)
    assert load_genotype(tmp_path / "g.json") == genotype
    text = describe(two_levels())
    assert "top-down P2: 2.00 x itself, 3.00 x [P3 (1.00)]" in text
    assert "2 = conv3x3d2(0), 3 = conv1x1(2); out = sum of (1, 3)" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"levels": (2, 4)}, "follow one another"),
        ({"top_down": ()}, "both paths or none"),
        ({"top_down": (), "bottom_up": (), "enhancement": ()}, "AutoFA, AutoFE or both"),
        ({"enhancement": (two_levels().enhancement[0],)}, "one cell a level"),
        ({"modules": ()}, "at least 1"),
        (
            {"top_down": (FusionCell(level=3), FusionCell(level=2))},
            "only the first step has no candidate",
        ),
        (
            {"bottom_up": (FusionCell(level=2), FusionCell(level=3, candidates=(Candidate(level=3, alpha=1),)))},
            "not different ones of",
        ),
    ],
)
def test_a_genotype_that_means_nothing_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        AutoFAEGenotype.model_validate({**two_levels().model_dump(), **change})


def test_a_cell_takes_earlier_nodes_only() -> None:
    with pytest.raises(ValidationError, match="no earlier one"):
        EnhancementCell(level=2, nodes=(Node(node=1, input=1, operation="conv1x1"),))
    with pytest.raises(ValidationError, match="where node 1 belongs"):
        EnhancementCell(level=2, nodes=(Node(node=2, input=0, operation="conv1x1"),))


def test_faults_of_a_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"kind": "autofae"')
    with pytest.raises(ValueError, match=r"broken\.json is no genotype"):
        load_genotype(tmp_path / "broken.json")
    with pytest.raises(ValueError, match="extra"):
        parse(two_levels().model_dump_json().replace('"position"', '"extra": 1, "position"'))
    with pytest.raises(ValueError, match="version"):
        parse(two_levels().model_dump_json().replace('"version":1', '"version":2'))


def test_operations_are_named_by_height_width_and_dilation() -> None:
    assert parse_operation("conv1x5") == (1, 5, 1)
    assert parse_operation("conv5x3d3") == (5, 3, 3)
    for wrong in ("conv2x2", "pool3x3", "conv3x3d1", "conv3x3d"):
        with pytest.raises(ValueError, match="operation"):
            parse_operation(wrong)


def test_every_operation_keeps_the_size() -> None:
    for name in SpaceConfig().operations:
        assert ConvOperation(3, name)(torch.randn(1, 3, 5, 2)).shape == (1, 3, 5, 2)


def test_a_fusion_step_is_eq_2_by_hand() -> None:
    fusion = Fusion(1, FusionCell(level=2, candidates=(Candidate(level=3, alpha=0.6), Candidate(level=4, alpha=0.4)),
                                  beta=(2.0, 3.0)))  # fmt: skip
    fusion.pre, fusion.post = torch.nn.Identity(), torch.nn.Identity()  # type: ignore[assignment]
    pool = {3: torch.full((1, 1, 1, 1), 10.0), 4: torch.full((1, 1, 1, 1), 100.0)}
    out = fusion(torch.ones(1, 1, 2, 2), pool)
    # Kept candidates are added without their alpha.
    assert out.flatten().tolist() == [2 * 1 + 3 * 110] * 4
    assert fusion.beta.requires_grad


def test_an_enhancement_cell_sums_its_leaves_by_hand() -> None:
    cell = Enhancement(1, two_levels().enhancement[0])
    factors = (2.0, 3.0, 5.0)
    cell.nodes = torch.nn.ModuleList(_Times(f) for f in factors)
    # Leaves are node 1 = 2 x and node 3 = 5 (3 x).
    assert cell(torch.ones(1, 1, 1, 1)).item() == 2 + 15


class _Times(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


@pytest.mark.parametrize("width", [1, 7, 16])
@pytest.mark.parametrize("modules", [(True,), (False,), (True, False, False)])
def test_stacked_at_any_width_and_size(width: int, modules: tuple[bool, ...]) -> None:
    genotype = random_genotype(SpaceConfig(), 1)
    channels = (4, 5, 6, 7, 8, 9)
    options = NeckOptions(genotype=genotype.model_dump_json(), modules=modules)
    neck = build_neck("autofae", channels, width, options)
    assert isinstance(neck, AutoFAE)
    assert len(neck.stacked) == len(modules)
    kept = [sum(p.numel() for p in m.enhancement.parameters()) > 0 for m in neck.stacked]  # type: ignore[union-attr, operator]
    assert tuple(kept) == modules
    features = maps(97, 65, channels)
    out = neck(features)
    assert [tuple(o.shape) for o in out] == [(2, width, *f.shape[-2:]) for f in features]
    sum(o.square().mean() for o in out).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in neck.parameters())


@pytest.mark.parametrize("position", ["before", "middle", "after"])
def test_position_of_autofe(position: str) -> None:
    """Marked by a cell that adds nothing but its own trace: outputs tell where it stood."""
    genotype = two_levels().model_copy(update={"position": position})
    neck = AutoFAE((1, 1), 1, genotype).eval()
    order: list[str] = []
    module = neck.stacked[0]
    for name, part in (("top", module.top_down), ("up", module.bottom_up), ("fe", module.enhancement["P2"])):
        assert isinstance(part, torch.nn.Module)
        part.register_forward_hook(lambda *_, name=name: order.append(name))
    neck(maps(16, 16, (1, 1)))
    expected = {"before": ["fe", "top", "up"], "middle": ["top", "fe", "up"], "after": ["top", "up", "fe"]}
    assert order == expected[position]


def test_restricted_to_another_pyramid() -> None:
    genotype = random_genotype(SpaceConfig(), 2).restrict((3, 4, 5, 6, 7))
    assert genotype.levels == (3, 4, 5, 6, 7)
    assert [c.level for c in genotype.top_down] == [7, 6, 5, 4, 3]
    assert all(c.candidates for c in genotype.top_down[1:] + genotype.bottom_up[1:])
    neck = build_neck("autofae", (4,) * 5, 3, NeckOptions(genotype=random_genotype(SpaceConfig(), 2).model_dump_json(),
                                                          levels=(3, 4, 5, 6, 7)))  # fmt: skip
    assert len(neck(maps(64, 64, (4,) * 5))) == 5
    with pytest.raises(ValueError, match="not 8"):
        genotype.restrict((7, 8))


def test_a_neck_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="2 maps"):
        build_neck("autofae", (1, 1), 4, NeckOptions(genotype=random_genotype(SpaceConfig(), 0).model_dump_json()))
    alone = random_genotype(SpaceConfig(part="autofe"), 0)
    with pytest.raises(ValueError, match="skipped in every module"):
        build_neck("autofe", (1,) * 6, 4, NeckOptions(genotype=alone.model_dump_json(), modules=(False,)))
    with pytest.raises(ValueError, match="is no genotype"):
        build_neck("autofae", (1,) * 6, 4, NeckOptions(genotype="{}"))


@pytest.mark.parametrize("part", ["autofa", "autofe", "autofae"])
def test_a_decided_search_network_equals_the_neck_derived_from_it(part: str) -> None:
    """With probabilities of nearly 0 and 1, the mixture is the discrete neck: two ways to the same numbers."""
    torch.manual_seed(3)
    config = SpaceConfig(part=part, operations=("conv1x1", "conv3x1", "conv3x3d2"))  # type: ignore[arg-type]
    channels = (3, 4, 5, 6, 5, 4)
    search = AutoFAESearch(channels, 4, config)
    with torch.no_grad():
        for name, value in search.arch.items():
            if not name.startswith("beta_"):
                value.copy_(60.0 * torch.nn.functional.one_hot(torch.randint(len(value), ()), len(value)))
            else:
                value.copy_(torch.rand(2) + 0.5)
    features = maps(50, 37, channels)
    search.sample(1.0, torch.Generator().manual_seed(0))
    search(features)  # norms get statistics
    search.eval()
    with torch.no_grad():
        for a, b in zip(search.derive().eval()(features), search(features), strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_sampled_evaluation_differs_from_the_full_one_in_gradients_of_kappa_alone() -> None:
    def outputs(evaluate: str) -> tuple[list[torch.Tensor], AutoFAESearch]:
        torch.manual_seed(0)
        search = AutoFAESearch((2, 2, 2), 2, SpaceConfig(part="autofe", levels=(2, 3, 4), evaluate=evaluate))  # type: ignore[arg-type]
        search.sample(1.0, torch.Generator().manual_seed(1))
        out = search(maps(32, 32, (2, 2, 2)))
        sum(o.square().mean() for o in out).backward()  # type: ignore[union-attr]
        return out, search

    (a, full), (b, sampled) = outputs("all"), outputs("sampled")
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(a, b, strict=True))
    gradients = [
        {n: p.grad for n, p in s.arch.items() if n.startswith("kappa") and len(p) > 1} for s in (full, sampled)
    ]
    assert any(not torch.allclose(gradients[0][n], gradients[1][n]) for n in gradients[0])  # type: ignore[arg-type]


def test_random_genotypes_differ_by_seed_and_are_the_same_for_one() -> None:
    assert random_genotype(SpaceConfig(), 0) == random_genotype(SpaceConfig(), 0)
    assert random_genotype(SpaceConfig(), 0).enhancement != random_genotype(SpaceConfig(), 1).enhancement
