"""The reference engine: PyTorch and greedy NMS in NumPy, behind the interface of the service's engines.

Slow and plain on purpose; what every other engine is compared with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from export.build import open_detector
from export.nms import greedy_nms
from service.engines.base import Detections, EngineError, check_images
from service.repository.manifest import Thresholds
from training.models.boxes import decode
from training.models.detector import Detector, normalize, scores


class TorchEngine:
    """A detector, run in float32. `open_reference` makes it from a checkpoint."""

    kind = "pytorch"
    max_batch: int | None = None

    def __init__(
        self, variant: str, detector: Detector, thresholds: Thresholds | None = None, path: Path | None = None,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        """path: that errors name; device: as PyTorch calls it."""
        self.variant, self._path = variant, path or Path(variant)
        self._thresholds, self._device = thresholds or Thresholds(), device
        before = psutil.Process().memory_info().rss
        self._detector: Detector | None = detector.to(device).eval()
        self._memory = int(max(psutil.Process().memory_info().rss - before, 0)) or sum(
            tensor.numel() * tensor.element_size() for tensor in detector.state_dict().values()
        )

    def warm_up(self, height: int, width: int, batch: int = 1) -> None:
        self.run(np.zeros((batch, height, width, 3), dtype=np.uint8))

    @torch.no_grad()
    def run(self, images: NDArray[np.uint8]) -> list[Detections]:
        """See `service.engines.base.Engine.run`."""
        if self._detector is None:
            raise EngineError(f"{self._path} is closed")
        check_images(images, self._path)
        height, width = images.shape[1:3]
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self._device).permute(0, 3, 1, 2)
        try:
            output = self._detector(normalize(pixels))
        except RuntimeError as error:
            raise EngineError(f"{self._path} failed on input {images.shape}: {error}") from error
        ranked = scores(output.logits, output.quality)
        boxes = decode(output.deltas, output.anchors).clamp(min=0)
        limit = np.array([width, height, width, height], dtype=np.float32)
        return [
            self._survivors(np.minimum(found.cpu().numpy(), limit), value.cpu().numpy())
            for found, value in zip(boxes, ranked, strict=True)
        ]

    def _survivors(self, boxes: NDArray[np.float32], values: NDArray[np.float32]) -> Detections:
        """boxes: [A, 4], values: [A], of every anchor."""
        limits = self._thresholds
        best = np.argsort(-values, kind="stable")[: limits.pre_nms_top_k]
        best = best[values[best] > limits.score]
        kept = best[greedy_nms(boxes[best], values[best], limits.nms_iou)][: limits.max_detections]
        return Detections(boxes[kept], values[kept])

    def memory_bytes(self) -> int:
        return self._memory

    def close(self) -> None:
        self._detector = None


def open_reference(variant: str, path: Path, thresholds: Thresholds | None = None, device: str = "cpu") -> TorchEngine:
    """The detector of a checkpoint. Raises `EngineError` naming the file and the cause."""
    try:
        detector, _ = open_detector(path)
    except (OSError, ValueError) as error:
        raise EngineError(f"{path} cannot be loaded by PyTorch {torch.__version__}: {error}") from error
    return TorchEngine(variant, detector, thresholds, path, device)
