"""Members of the family as Table 7 sizes them, with FPN as the neck until a searched one measures better."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from training.models.detector import DetectorConfig, build_detector

MEMBERS: dict[str, DetectorConfig] = {
    "d0": DetectorConfig(backbone="resnet18", head_convs=1, channels=64),
    "d1": DetectorConfig(backbone="resnet18", head_convs=3, channels=128),
    "d2": DetectorConfig(backbone="resnet34", head_convs=3, channels=192),
}


@dataclass(frozen=True)
class Counts:
    """parameters: trainable numbers; gmacs_vga: 1e9 multiply-accumulates of one 480x640 picture."""

    parameters: int
    gmacs_vga: float


def count(config: DetectorConfig) -> Counts:
    """Count a detector's parameters and its arithmetic at VGA."""
    detector = build_detector(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        detector(torch.zeros(1, 3, 480, 640))
    return Counts(sum(p.numel() for p in detector.parameters()), counter.get_total_flops() / 2e9)
