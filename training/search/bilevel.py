"""The architecture's gradient in the bi-level search (section 4.2; DARTS, Liu et al., ICLR 2019, sections 2.3, 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

Loss = Callable[[], Tensor]
_PERTURBATION = 0.01


def backward(loss: Loss, wanted: Sequence[nn.Parameter], others: Sequence[nn.Parameter]) -> Tensor:
    """Leave the gradient of `loss()` in `wanted` alone: others are constants meanwhile. Returns the loss, detached.

    A parameter that the loss does not depend on gets a gradient of zeros.
    """
    for parameter in wanted:
        parameter.grad = None
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        value = loss()
        torch.autograd.backward(value)
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
    for parameter in wanted:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return value.detach()


def first_order(
    arch_loss: Loss, arch: Sequence[nn.Parameter], weights: Sequence[nn.Parameter]
) -> Tensor:  # fmt: skip
    """Gradient of the architecture's loss at the weights as they are, left in `arch`."""
    return backward(arch_loss, arch, weights)


def second_order(
    weight_loss: Loss,
    arch_loss: Loss,
    arch: Sequence[nn.Parameter],
    weights: Sequence[nn.Parameter],
    rate: float,
    decay: float,
) -> Tensor:
    """Gradient at the weights one plain gradient step of `rate` ahead (DARTS, Eq. 7 and 8), left in `arch`.

    The product with the Hessian is a difference of two gradients at weights shifted by 0.01 / |v| along v. The weights
    are what they were afterwards. The losses are called several times and must return the same at the same weights.
    """
    before = [w.detach().clone() for w in weights]
    backward(weight_loss, weights, arch)
    steps = [_grad(w) + decay * w.detach() for w in weights]
    _set(weights, [w - rate * g for w, g in zip(before, steps, strict=True)])
    for parameter in [*arch, *weights]:
        parameter.grad = None
    value = arch_loss()
    torch.autograd.backward(value)
    ahead = [_grad(a).clone() for a in arch]
    direction = [_grad(w).clone() for w in weights]
    length = torch.sqrt(sum((v.square().sum() for v in direction), torch.zeros((), device=value.device)))
    shift = _PERTURBATION / float(length.clamp(min=1e-12))
    sides = []
    for sign in (1.0, -1.0):
        _set(weights, [w + sign * shift * v for w, v in zip(before, direction, strict=True)])
        backward(weight_loss, arch, weights)
        sides.append([_grad(a).clone() for a in arch])
    _set(weights, before)
    for parameter, gradient, plus, minus in zip(arch, ahead, *sides, strict=True):
        parameter.grad = gradient - rate * (plus - minus) / (2 * shift)
    for parameter in weights:
        parameter.grad = None
    return value.detach()


def _grad(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach()


@torch.no_grad()
def _set(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Mean over all processes, in one message; nothing to do in a single process. Gradients must be there."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    flat = torch.cat([_grad(p).reshape(-1) for p in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    at = 0
    for parameter in parameters:
        parameter.grad = flat[at : at + parameter.numel()].view_as(parameter).clone()
        at += parameter.numel()


def check_agreement(parameters: Sequence[nn.Parameter]) -> None:
    """Raises RuntimeError where processes hold different architectures, which would make the search meaningless."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    mine = torch.cat([p.detach().reshape(-1) for p in parameters])
    theirs = mine.clone()
    dist.broadcast(theirs, src=0)
    # Every process learns of it, or those that agree would wait for the one that stopped.
    differs = torch.tensor(float(not torch.equal(mine, theirs)), device=mine.device)
    dist.all_reduce(differs)
    if differs:
        raise RuntimeError("processes disagree about the architecture parameters")
