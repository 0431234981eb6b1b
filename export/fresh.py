"""Detectors with fresh weights that are worth timing and comparing: nothing explodes, nothing is degenerate."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.models.detector import Detector, DetectorConfig, build_detector, normalize

_LOGIT_MEAN, _LOGIT_STD = -4.0, 1.5  # about one cell in four is over the score threshold
_DELTA_STD = 1.0


def fresh_detector(config: DetectorConfig, seed: int = 0) -> Detector:
    """Fresh weights in eval mode. Batch norms have the statistics of one drawn picture, without which a hundred layers
    of Kaiming's weights overflow; the predictors are scaled so that scores spread and some boxes are found.

    Same seed, same weights. The caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = build_detector(config)
    picture = torch.from_numpy(drawn_picture(512, 640, seed)).permute(2, 0, 1)[None]
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        detector.train()(normalize(picture))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        output = detector.eval()(normalize(picture))
        detector.head.cls_logits.weight *= _LOGIT_STD / _spread(output.logits)
        detector.head.box_deltas.weight *= _DELTA_STD / _spread(output.deltas)
        if detector.head.cls_logits.bias is not None:
            detector.head.cls_logits.bias.fill_(_LOGIT_MEAN)
    return detector


def _spread(values: Tensor) -> float:
    """The deviation of the middle of a distribution, which the few cells of the coarse levels cannot stretch."""
    low, high = torch.quantile(values.flatten()[::7], torch.tensor([0.16, 0.84])).tolist()
    return float(high - low) / 2


def drawn_picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Blots of several sizes, uint8 [height, width, 3]: with structure at every level of the pyramid, as photos have
    it and noise has not."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cell in (4, 16, 64):
        coarse = random.normal(0, 40, (-(-height // cell), -(-width // cell), 3))
        total += coarse.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]
    return np.clip(total + 128, 0, 255).astype(np.uint8)
