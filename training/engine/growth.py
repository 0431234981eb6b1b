"""Grow a larger member out of a trained smaller one, so that it begins with all that the smaller has learnt.

The smaller detector becomes a front slice of the larger, as a path is a slice of the supernet: its channels come first
and do not listen to the new ones, extra head convolutions and residual blocks pass on what they get. In eval mode the
larger then computes what the smaller does, and training goes on from there (Chen, Goodfellow and Shlens, "Net2Net",
ICLR 2016, with silent new channels in place of copied ones).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from training.engine.warm_start import calibrate, read_detector
from training.models.detector import Detector, DetectorConfig
from training.models.head import Tower

_DEEPER = {"resnet18": ("resnet18", "resnet34"), "resnet34": ("resnet34",)}


def grow_from(path: Path, model: Detector, config: DetectorConfig, pictures: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Give `model`, built from `config`, the weights of the smaller detector in `path`, in place.

    path: a checkpoint (its average is taken) or an exported `.onnx` file with its manifest. pictures: batches float
    [N, 3, H, W], normalised, on which the statistics of new norms are measured. Returns the training that the weights
    have had, as `warm_start.start_from` does. Raises FileNotFoundError, and ValueError where `config` is not larger.
    """
    device, batches = next(model.parameters()).device, list(pictures)
    small, smaller, stages = read_detector(path, [batch.cpu() for batch in batches])
    _check(smaller, config, path)
    grow(small.to(device), model)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        calibrate(model, {norm: _passing(norm) for norm in _new_norms(small, model)}, batches)
    model.train(was_training)
    return stages


@torch.no_grad()
def grow(small: Detector, large: Detector) -> None:
    """Make `small` a front slice of `large`, in place. Norms of extra head convolutions are left to the caller, who
    has pictures to measure them on."""
    source, target = small.state_dict(), large.state_dict()
    for name, new in target.items():
        old = source.get(name)
        if old is None:
            continue
        part = tuple(slice(0, n) for n in old.shape)
        if old.ndim == 4 and new.shape[1] > old.shape[1]:
            new[: old.shape[0], old.shape[1] :] = 0  # old channels do not listen to new ones
        new[part] = old
    for name, module in large.named_modules():
        if isinstance(module, BasicBlock) and f"{name}.conv1.weight" not in source:
            module.bn2.weight.zero_()
            module.bn2.bias.zero_()
        elif isinstance(module, Tower):
            begin = sum(f"{name}.convs.{k}.weight" in source for k in range(len(module.convs)))
            for conv in list(module.convs)[begin:]:
                assert isinstance(conv, nn.Conv2d)
                nn.init.dirac_(conv.weight)


def _new_norms(small: Detector, large: Detector) -> list[nn.BatchNorm2d]:
    """Norms of the head convolutions that `small` has not."""
    known = set(small.state_dict())
    return [
        module
        for name, module in large.head.named_modules(prefix="head")
        if isinstance(module, nn.BatchNorm2d) and f"{name}.weight" not in known
    ]


def _passing(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a norm that passes on what it gets."""
    return torch.ones_like(norm.weight), torch.zeros_like(norm.weight)


def _check(small: DetectorConfig, large: DetectorConfig, path: Path) -> None:
    """Raises ValueError unless `large` can compute what `small` does."""
    wrong = None
    if large.backbone not in _DEEPER.get(small.backbone, (small.backbone,)):
        wrong = f"its backbone is {small.backbone}, of which {large.backbone} is no deeper form with the same blocks"
    elif small.neck != "fpn" or large.neck != "fpn":
        wrong = f"growing knows the neck fpn, not {small.neck if small.neck != 'fpn' else large.neck}"
    elif small.head_norm != "batch" or large.head_norm != "batch":
        wrong = "growing knows heads with batch norm"
    elif small.channels > large.channels or small.head_convs > large.head_convs:
        wrong = (
            f"it has {small.channels} channels and {small.head_convs} head convolutions, "
            f"more than the {large.channels} and {large.head_convs} to be trained"
        )
    elif replace(small, backbone=large.backbone, channels=large.channels, head_convs=large.head_convs) != large:
        wrong = "its anchors, branches or options of the neck are others"
    if wrong:
        raise ValueError(f"{path} cannot be grown into this member: {wrong}")
