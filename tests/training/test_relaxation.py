"""Equations 1 to 6 of the paper, against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from training.models.necks.base import resize_like
from training.search.base import entropy
from training.search.relaxation import (
    fuse,
    gumbel_noise,
    keep_candidates,
    leaves,
    mix,
    mixed_operation,
    straight_through,
)


def test_eq_1_mixes_candidates_and_weighs_them_against_the_feature() -> None:
    candidates = [torch.full((1, 1, 1, 2), v) for v in (1.0, 10.0)]
    mixed = mix(candidates, torch.tensor([0.25, 0.75]))
    assert mixed.tolist() == [[[[7.75, 7.75]]]]  # 0.25 x 1 + 0.75 x 10
    out = fuse(torch.full((1, 1, 1, 2), 3.0), mixed, torch.tensor([2.0, -1.0]), lambda x: 2 * x, lambda x: x + 0.5)
    assert out[0, 0, 0].tolist() == [2 * 3 - 2 * 7.75 + 0.5] * 2


def test_eq_2_relative_rule_keeps_what_is_half_as_likely_as_the_best() -> None:
    assert keep_candidates([0.4, 0.2, 0.19, 0.21]) == [0, 1, 3]
    assert keep_candidates([0.2] * 5) == [0, 1, 2, 3, 4]


def test_eq_2_printed_rule_keeps_one_half_and_always_the_best() -> None:
    assert keep_candidates([0.5, 0.3, 0.2], "absolute") == [0]
    assert keep_candidates([0.5, 0.5], "absolute") == [0, 1]
    assert keep_candidates([0.3, 0.4, 0.3], "absolute") == [1]
    assert keep_candidates([0.3, 0.4, 0.3], "absolute", 0.3) == [0, 1, 2]


def test_eq_4_leaves_are_the_nodes_that_feed_no_other() -> None:
    assert leaves([0, 1, 2]) == [3]  # a chain
    assert leaves([0, 0, 0]) == [1, 2, 3]  # all from the input
    assert leaves([0, 1, 1]) == [2, 3]
    assert leaves([0]) == [1]


def test_eq_5_forward_is_one_hot_where_kappa_and_noise_are_largest() -> None:
    h = straight_through(torch.tensor([0.0, 1.0, 0.5]), torch.tensor([2.0, 0.0, 1.4]), 7.0)
    assert h.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(("formula", "logits"), [("sum", (0.3, -0.45)), ("printed", (0.5, 0.35))])
def test_eq_6_gradient_is_the_softmax_of_the_right_temperature(formula: str, logits: tuple[float, float]) -> None:
    kappa = torch.tensor([0.5, -0.4], requires_grad=True)
    noise = torch.tensor([0.1, -0.5])
    if formula == "printed":
        noise = torch.tensor([0.0, 1.5])
    h = straight_through(kappa, noise, 2.0, formula)  # type: ignore[arg-type]
    h[0].backward()
    # d softmax_0 / d logit is p0 p1 and - p0 p1; the temperature divides kappa under the sum alone.
    first, second = logits
    p = math.exp(first) / (math.exp(first) + math.exp(second))
    slope = p * (1 - p) / (2.0 if formula == "sum" else 1.0)
    assert kappa.grad is not None
    assert kappa.grad.tolist() == pytest.approx([slope, -slope], rel=1e-5)
    assert sorted(h.tolist()) == [0.0, 1.0]


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        straight_through(torch.zeros(2), torch.zeros(2), 0.0)


def test_eq_3_operations_are_summed_by_gamma() -> None:
    x = torch.tensor([3.0])
    out = mixed_operation(x, [lambda v: v, lambda v: v * v], torch.tensor([0.25, 0.75]))
    assert out.tolist() == [0.25 * 3 + 0.75 * 9]


def test_noise_is_gumbel_and_belongs_to_its_generator() -> None:
    a = gumbel_noise(20_000, torch.Generator().manual_seed(1))
    assert torch.equal(a, gumbel_noise(20_000, torch.Generator().manual_seed(1)))
    assert a.mean().item() == pytest.approx(0.5772, abs=0.03)  # Euler's constant
    assert a.var().item() == pytest.approx(math.pi**2 / 6, abs=0.08)


@pytest.mark.parametrize(
    ("source", "target"), [((3, 2), (5, 4)), ((9, 7), (3, 2)), ((25, 17), (1, 1)), ((4, 6), (4, 6))]
)
def test_resizing_reaches_any_size(source: tuple[int, int], target: tuple[int, int]) -> None:
    x = torch.rand(1, 2, *source)
    out = resize_like(x, torch.zeros(1, 2, *target))
    assert out.shape[-2:] == target
    assert out.max() <= x.max() + 1e-6


def test_resizing_down_is_max_pooling() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert resize_like(x, torch.zeros(1, 1, 1, 1)).item() == 15.0
    assert resize_like(x, torch.zeros(1, 1, 2, 2)).flatten().tolist() == [5.0, 7.0, 13.0, 15.0]


def test_entropy_is_relative_to_undecided() -> None:
    assert entropy(torch.full((4,), 0.25)) == pytest.approx(1.0)
    assert entropy(torch.tensor([1.0, 0.0])) == pytest.approx(0.0, abs=1e-6)
    assert entropy(torch.tensor([1.0])) == 0.0
