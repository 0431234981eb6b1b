"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import psutil
from numpy.typing import NDArray

from service.engines.base import Detections, EngineError

_OUTPUTS = ["num_detections", "boxes", "scores"]


class OnnxCpuEngine:
    """One ONNX file in one session. threads: 0 takes all cores."""

    kind = "onnxruntime-cpu"

    def __init__(self, variant: str, path: Path, threads: int = 0) -> None:
        """Load `path`. Raises `EngineError` naming the file and the cause."""
        self.variant = variant
        self._path = path
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin between requests would take the cores that decoding needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # With a dozen input sizes the arena and the memory patterns would keep the sum of what each size once needed.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        before = _resident()
        try:
            self._session: ort.InferenceSession | None = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise EngineError(f"{path} cannot be loaded by ONNX Runtime {ort.__version__}: {error}") from error
        names = [output.name for output in self._session.get_outputs()]
        if [i.name for i in self._session.get_inputs()] != ["images"] or set(names) != set(_OUTPUTS):
            raise EngineError(f"{path} is not a serving graph: its outputs are {names}, expected {_OUTPUTS}")
        self._memory = max(_resident() - before, 0)

    def warm_up(self, height: int, width: int, batch: int = 1) -> None:
        self.run(np.zeros((batch, height, width, 3), dtype=np.uint8))

    def run(self, images: NDArray[np.uint8]) -> list[Detections]:
        """See `Engine.run`."""
        if self._session is None:
            raise EngineError(f"{self._path} is closed")
        try:
            counts, boxes, scores = self._session.run(_OUTPUTS, {"images": images})
        except Exception as error:
            raise EngineError(f"{self._path} failed on input {images.shape}: {error}") from error
        # Copies, so that an answer does not keep the whole padded output alive.
        return [Detections(boxes[k, :n].copy(), scores[k, :n].copy()) for k, n in enumerate(counts)]

    def memory_bytes(self) -> int:
        return self._memory

    def close(self) -> None:
        self._session = None


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)
