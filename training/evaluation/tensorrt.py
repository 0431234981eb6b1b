"""An engine file of TensorRT (`.engine`, `.plan`), built from an exported `.onnx`, as `service.engines.base.Engine`
has them: uint8 pictures in, detections out.

Written against the Python API of TensorRT 10 and checked against its bindings by name. **It has never run**: no machine
with TensorRT was at hand.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engines.base import Detections, EngineError

INPUT = "images"
OUTPUTS = ("num_detections", "boxes", "scores")


class TensorRtEngine:
    """One engine on the current CUDA device. Input and output buffers are tensors of PyTorch."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError that says what is missing: TensorRT, a CUDA device, or a usable engine file."""
        import torch

        trt = load_tensorrt(path)
        if not torch.cuda.is_available():
            raise ValueError(f"{path}: an engine of TensorRT needs a CUDA device, and PyTorch sees none")
        self._torch, self._path = torch, path
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ValueError(
                f"{path} cannot be loaded by TensorRT {trt.__version__}: engines only run on the version and the kind "
                "of GPU that they were built with"
            )
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        if set(names) != {INPUT, *OUTPUTS}:
            raise ValueError(f"{path} is not a serving graph: its tensors are {names}, expected {[INPUT, *OUTPUTS]}")
        self._types = {name: _torch_type(trt, torch, self._engine.get_tensor_dtype(name)) for name in names}
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise ValueError(f"{path}: TensorRT could not make an execution context; is there enough GPU memory?")
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def run(self, images: NDArray[np.uint8]) -> list[Detections]:
        """See `service.engines.base.Engine.run`."""
        torch, context = self._torch, self._context
        if not context.set_input_shape(INPUT, tuple(images.shape)):
            low, _, high = self._engine.get_tensor_profile_shape(INPUT, 0)
            raise EngineError(
                f"{self._path} was not built for input {images.shape}: it takes {tuple(low)} to {tuple(high)}"
            )
        with torch.cuda.stream(self._stream):
            tensors = {INPUT: torch.from_numpy(np.ascontiguousarray(images)).to("cuda", self._types[INPUT])}
            for name in OUTPUTS:
                shape = tuple(context.get_tensor_shape(name))
                if min(shape, default=0) < 0:
                    raise EngineError(f"{self._path}: the shape of {name} is only known after the run, {shape}")
                tensors[name] = torch.empty(shape, dtype=self._types[name], device="cuda")
            for name, tensor in tensors.items():
                context.set_tensor_address(name, tensor.data_ptr())
            done = context.execute_async_v3(self._stream.cuda_stream)
        self._stream.synchronize()
        if not done:
            raise EngineError(f"{self._path} failed on input {images.shape}; TensorRT's log has the cause")
        counts, boxes, scores = (tensors[name].cpu().numpy() for name in OUTPUTS)
        return [
            Detections(boxes[k, :n].astype(np.float32), scores[k, :n].astype(np.float32))
            for k, n in enumerate(counts.reshape(-1).tolist())
        ]


def load_tensorrt(path: Path) -> Any:
    """The module `tensorrt`. Raises ValueError that says what to install to run `path`."""
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise ValueError(
            f"{path} needs TensorRT, which is not installed here: pip install 'tensorrt>=10,<11', on a machine with an "
            "NVIDIA GPU"
        ) from error


def _torch_type(trt: Any, torch: Any, kind: Any) -> Any:
    known = {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.INT32: torch.int32,
        trt.DataType.INT64: torch.int64,
        trt.DataType.UINT8: torch.uint8,
    }
    if kind not in known:
        raise ValueError(f"a tensor of type {kind} is not part of a serving graph")
    return known[kind]
