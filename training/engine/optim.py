"""Optimiser, learning-rate schedule and the moving average of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from training.config import OptimConfig, TrainConfig


def for_ranks(config: TrainConfig, ranks: int) -> OptimConfig:
    """The run's `optim` with the rate that `ranks` processes need together: the linear rule, upwards only, where
    `lr_images` says what the rate is meant for. A pure function."""
    optim = config.optim
    if optim.lr_images is None:
        return optim
    return replace(optim, lr=optim.lr * max(1.0, config.images_a_step(ranks) / optim.lr_images))


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> Optimizer:
    """Norms and biases are not decayed by AdamW; SGD decays all, as the paper's number is meant."""
    every = list(parameters)
    if config.name == "sgd":
        return SGD(every, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    decayed = [p for p in every if p.ndim > 1]
    rest = [p for p in every if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return AdamW(groups, config.lr)


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Rate of step `step` of `steps`: linear warm-up, then the schedule. A pure function."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = step / max(steps, 1)
    if config.schedule == "multistep":
        return config.lr * 0.1 ** sum(progress >= m for m in config.milestones)
    left = (1 - progress) / config.decay
    return config.lr * min(1.0, max(left, 0.0))


class Ema:
    """Exponential moving average of all floating-point state, batch-norm statistics included.

    The decay is ramped up, so that early steps do not remember the initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.state = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine: list[Tensor] = []
        theirs: list[Tensor] = []
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                mine.append(self.state[key])
                theirs.append(value)
            else:
                self.state[key].copy_(value)
        # All in a few kernels: a GPU takes longer to be asked for each tensor than to average it.
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        self.updates = updates
        for key, value in state.items():
            self.state[key].copy_(value)
