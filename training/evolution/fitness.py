"""AP.50 of a supernet's slices on the mini-validation (paper, section 4.3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from training.data.wider import PhotoAnnotation
from training.engine.distributed import World
from training.engine.loop import on_device
from training.engine.precision import Precision, autocast
from training.engine.validate import score_pictures
from training.evolution.ranks import divided
from training.models.detector import Detector
from training.supernet.path import SinglePath

Recalibrate = Callable[[Detector, Iterable[Tensor]], None]


class Cuttable(Protocol):
    """What a supernet must do here."""

    def cut(self, path: SinglePath) -> Detector:
        """A detector of its own with copies of the path's weights."""


class SliceFitness:
    """AP.50 in 0..1 of each path, as the supernet's weights have it. All processes must ask for the same paths.

    photos: the mini-validation, annotations and pixels uint8 [h, w, 3]; crops: what batch norms are measured on anew
    for every path, float [N, 3, H, W], normalised, the same for all, since statistics of all paths together are wrong
    for each; long_side: of the evaluation, in pixels; precision: of convolutions, as in training.
    """

    def __init__(
        self,
        supernet: Cuttable,
        photos: Sequence[tuple[PhotoAnnotation, NDArray[np.uint8]]],
        crops: Sequence[Tensor],
        long_side: int,
        world: World,
        recalibrate: Recalibrate,
        precision: Precision = "fp32",
    ) -> None:
        if not photos:
            raise ValueError("the mini-validation has no photo")
        self.supernet, self.photos, self.crops, self.long_side = supernet, photos, crops, long_side
        self.world, self.precision = world, precision
        self._recalibrate = recalibrate

    def __call__(self, paths: Sequence[SinglePath]) -> list[float]:
        return divided(self.world, paths, self.score)

    def score(self, path: SinglePath) -> float:
        """AP.50 of one path, computed by this process."""
        device = self.world.device
        detector = on_device(self.supernet.cut(path), device)
        with autocast(device.type, self.precision):
            self._recalibrate(detector, (crops.to(device) for crops in self.crops))
            return score_pictures(detector.eval(), self.photos, self.long_side)["ap50"]
