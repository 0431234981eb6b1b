"""Equations 1 to 6 of the paper as functions of tensors, apart from the networks that use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

AlphaRule = Literal["relative", "absolute"]
GumbelFormula = Literal["sum", "printed"]


def mix(candidates: Sequence[Tensor], alpha: Tensor) -> Tensor:
    """The inner sum of Eq. 1: J candidates [N, C, h, w], resized already, weighted by alpha [J]."""
    total = alpha[0] * candidates[0]
    for weight, candidate in zip(alpha[1:], candidates[1:], strict=True):
        total = total + weight * candidate
    return total


def fuse(
    feature: Tensor,
    mixed: Tensor,
    beta: Tensor,
    pre: Callable[[Tensor], Tensor],
    post: Callable[[Tensor], Tensor],
) -> Tensor:
    """Eq. 1: f_post(beta_0 F + beta_1 f_pre(mixed)); beta: [2]."""
    return post(beta[0] * feature + beta[1] * pre(mixed))


def keep_candidates(alpha: Sequence[float], rule: AlphaRule = "relative", threshold: float = 0.5) -> list[int]:
    """Which candidates the discrete cell takes (Eq. 2), by index, the best always among them.

    `absolute` is the equation's letter, alpha >= threshold, which a softmax can meet once at most; `relative` is
    alpha >= threshold * max(alpha), since section 5.3 says that several are kept.
    """
    best = max(range(len(alpha)), key=lambda j: alpha[j])
    floor = threshold * (alpha[best] if rule == "relative" else 1.0)
    return [j for j, value in enumerate(alpha) if j == best or value >= floor]


def kept_by_rule(alpha: Sequence[float], threshold: float = 0.5) -> tuple[int, int]:
    """How many candidates of a cell meet Eq. 2: (relative to the largest, by its letter).

    The letter's may be 0; the discrete cell then has the best alone. alpha: probabilities [J], J >= 1.
    """
    return len(keep_candidates(alpha, "relative", threshold)), sum(value >= threshold for value in alpha)


def gumbel_noise(count: int, generator: torch.Generator) -> Tensor:
    """o of Eq. 5: i.i.d. Gumbel(0, 1), float32 [count] on the CPU; drawn again where a value is not finite."""
    while True:
        noise = -torch.empty(count).exponential_(generator=generator).log()
        if bool(torch.isfinite(noise).all()):
            return noise


def straight_through(kappa: Tensor, noise: Tensor, temperature: float, formula: GumbelFormula = "sum") -> Tensor:
    """h of Eq. 5, differentiable by Eq. 6: kappa, noise [n] -> [n].

    Forward: one-hot of arg max(kappa + o). Backward: the gradient of the softmax of (kappa + o) / temperature, or, as
    Eq. 6 is printed, of kappa + o / temperature. Raises ValueError where the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"the temperature must be positive, not {temperature}")
    relaxed = (kappa + noise) / temperature if formula == "sum" else kappa + noise / temperature
    soft = relaxed.softmax(dim=0)
    hard = torch.zeros_like(soft)
    hard[(kappa + noise).argmax()] = 1.0
    # In this order the value is exactly 0 or 1: soft - soft is 0.
    return (soft - soft.detach()) + hard


def leaves(inputs: Sequence[int]) -> list[int]:
    """Eq. 4: nodes that feed no other. inputs: the predecessor of node 1, 2, ...; node 0 is the cell's input."""
    used = set(inputs)
    return [node for node in range(1, len(inputs) + 1) if node not in used]


def mixed_operation(x: Tensor, operations: Sequence[Callable[[Tensor], Tensor]], gamma: Tensor) -> Tensor:
    """f_op of Eq. 3: the sum of all operations on x, weighted by gamma [len(operations)]."""
    total = gamma[0] * operations[0](x)
    for weight, operation in zip(gamma[1:], operations[1:], strict=True):
        total = total + weight * operation(x)
    return total
