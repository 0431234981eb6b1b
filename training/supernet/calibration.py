"""Batch-norm statistics measured anew, for a network whose weights were trained as a part of another."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from training.models.detector import Detector


@torch.no_grad()
def recalibrate(detector: Detector, pictures: Iterable[Tensor]) -> None:
    """Measure the statistics of all batch norms anew, in place: plain means over the batches of `pictures`.

    Those of a supernet are of all its paths together, and wrong for each (Yu and Huang, Universally Slimmable Networks,
    ICCV 2019; Cai et al., Once-for-All, ICLR 2020). pictures: float [N, 3, H, W], normalised, on the detector's device;
    more than 128 pixels a side, or more than one a batch, so that every level has several cells. Weights stay as they
    are, and the detector is left in eval mode. Runs under the caller's autocast.

    Raises ValueError where there is no picture; the statistics are then what they were.
    """
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    detector.eval()
    batches = 0
    try:
        for images in pictures:
            if not batches:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.train()
                    norm.momentum = None  # a plain mean over all batches
            detector(images)
            batches += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        detector.eval()
    if not batches:
        raise ValueError("batch norms are measured on pictures, but none was given")
