"""ONNX Runtime, on the CPU and on a GPU of NVIDIA (its CUDA execution provider): one engine, two ways to open it.

**The GPU's part has never run**: no machine with a GPU was at hand. Option names are ONNX Runtime's own
(`onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc`); what they are worth here is not measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
from numpy.typing import NDArray

from service.engines.base import Detections, DeviceLostError, EngineError, OutOfMemoryError, check_images
from service.engines.cuda import LASTING, free_bytes

INPUT = "images"
OUTPUTS = ("num_detections", "boxes", "scores")
CPU_KIND, CUDA_KIND = "onnxruntime-cpu", "onnxruntime-cuda"
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

# Of the arena, of the arena at its limit (`gpu_mem_limit`), of C++, and of cuDNN and cuBLAS.
_MEMORY_RAN_OUT = (
    "Failed to allocate memory", "is smaller than requested bytes", "bad_alloc", "ALLOC_FAILED",
    "ALLOCATION_FAILED",
)  # fmt: skip

_Run = Callable[[NDArray[np.uint8]], Sequence[NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """memory_limit: bytes of the arena of each session, None = all that is free; exhaustive: let cuDNN time every way
    to convolve when it first meets a shape, which takes seconds a shape, instead of trusting its heuristic."""

    memory_limit: int | None = None
    exhaustive: bool = False

    def provider(self) -> dict[str, str]:
        """Options of `CUDAExecutionProvider`."""
        options = {
            "device_id": "0",
            # By powers of two the arena would take up to twice of what the largest batch needs.
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "EXHAUSTIVE" if self.exhaustive else "HEURISTIC",
            "do_copy_in_default_stream": "1",  # a stream of its own can race, by ONNX Runtime's documentation
            "use_tf32": "0",  # what is stored as float32 is to be computed as such; float16 is the fast form
        }
        return options if self.memory_limit is None else {**options, "gpu_mem_limit": str(self.memory_limit)}


class OnnxEngine:
    """One ONNX file in one session. `open_cpu` and `open_cuda` make it."""

    max_batch: int | None = None

    def __init__(self, variant: str, path: Path, kind: str, session: ort.InferenceSession, memory: int) -> None:
        """memory: bytes that loading took. Raises `EngineError` where `session` does not keep the graph's contract."""
        self.variant, self.kind, self._path, self._memory = variant, kind, path, memory
        names = [output.name for output in session.get_outputs()]
        if [i.name for i in session.get_inputs()] != [INPUT] or set(names) != set(OUTPUTS):
            raise EngineError(f"{path} is not a serving graph: its outputs are {names}, expected {list(OUTPUTS)}")
        if kind == CUDA_KIND:
            self._run: _Run | None = bound_run(session, "cuda")
        else:
            self._run = lambda images: session.run(OUTPUTS, {INPUT: images})

    def warm_up(self, height: int, width: int, batch: int = 1) -> None:
        self.run(np.zeros((batch, height, width, 3), dtype=np.uint8))

    def run(self, images: NDArray[np.uint8]) -> list[Detections]:
        """See `Engine.run`."""
        if self._run is None:
            raise EngineError(f"{self._path} is closed")
        check_images(images, self._path)
        try:
            counts, boxes, scores = self._run(images)
        except Exception as error:
            raise _failure(error, f"{self._path} failed on input {images.shape}: {error}") from error
        # Copies, so that an answer does not keep the whole padded output alive.
        return [Detections(boxes[k, :n].copy(), scores[k, :n].copy()) for k, n in enumerate(counts)]

    def memory_bytes(self) -> int:
        return self._memory

    def close(self) -> None:
        self._run = None


def open_cpu(variant: str, path: Path, threads: int = 0) -> OnnxEngine:
    """`path` on the CPU. threads: 0 takes all cores. Raises `EngineError` naming the file and the cause."""
    options = _options()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # With a dozen input sizes the arena would keep the sum of what each size once needed.
    options.enable_cpu_mem_arena = False
    before = _resident()
    session = _session(path, options, [_CPU])
    # Memory that was free before grows no process, so the file's size is the least.
    return OnnxEngine(variant, path, CPU_KIND, session, max(_resident() - before, path.stat().st_size))


def has_cuda() -> bool:
    """Whether the installed ONNX Runtime is built with CUDA; the libraries that it needs may still be missing."""
    return _CUDA in ort.get_available_providers()


def open_cuda(variant: str, path: Path, cuda: CudaOptions | None = None) -> OnnxEngine:
    """`path` on the GPU; operations that its provider lacks run on the CPU, which the graphs for GPUs have none of.

    Raises `EngineError` naming the file and the cause, also where ONNX Runtime would have gone on without the GPU.
    """
    if not has_cuda():
        raise EngineError(
            f"{path}: the installed onnxruntime {ort.__version__} is built without CUDA: pip uninstall onnxruntime, "
            "then pip install onnxruntime-gpu"
        )
    # CUDA's and cuDNN's libraries may be wheels beside it, which the loader does not search. It prints what it misses.
    ort.preload_dlls()
    before = _free_on_device()
    session = _session(path, _options(), [(_CUDA, (cuda or CudaOptions()).provider()), _CPU])
    # Without its libraries, or a device, the session would quietly be one of the CPU.
    if _CUDA not in session.get_providers():
        raise EngineError(
            f"{path}: ONNX Runtime {ort.__version__} could not start its CUDA provider; it needs the driver, CUDA and "
            "cuDNN of the versions that it was built for (its own lines on stderr name the library that is missing)"
        )
    session.disable_fallback()  # nor is it to change over to the CPU when a run fails
    return OnnxEngine(variant, path, CUDA_KIND, session, max(before - _free_on_device(), path.stat().st_size))


def bound_run(session: ort.InferenceSession, device: str) -> _Run:
    """Run `session` with the pictures put on `device` once, before the run, and the results fetched once, behind it."""

    def run(images: NDArray[np.uint8]) -> Sequence[NDArray[Any]]:
        binding = session.io_binding()
        value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(images), device, 0)
        binding.bind_ortvalue_input(INPUT, value)
        for name in OUTPUTS:
            binding.bind_output(name)  # on the host: the copy belongs to the run, and waits for its stream
        session.run_with_iobinding(binding)
        found: Sequence[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return found

    return run


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Threads that spin between requests would take the cores that decoding needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A pattern is planned for each shape and kept; with many input sizes that is memory for nothing.
    options.enable_mem_pattern = False
    return options


def _session(path: Path, options: ort.SessionOptions, providers: list[Any]) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        message = f"{path} cannot be loaded by ONNX Runtime {ort.__version__}: {error}"
        raise _failure(error, message) from error


def _failure(error: Exception, message: str) -> EngineError:
    """The error that fits ONNX Runtime's, which is told by its words alone ("CUDA failure 700: ...")."""
    text = str(error)
    codes = {int(code) for code in re.findall(r"CUDA failure (\d+)", text)}
    if codes & set(LASTING.values()):
        return DeviceLostError(message)
    if isinstance(error, MemoryError) or 2 in codes or any(words in text for words in _MEMORY_RAN_OUT):
        return OutOfMemoryError(message)
    return EngineError(message)


def _free_on_device() -> int:
    try:
        return free_bytes()
    except EngineError:  # only the report on memory needs it
        return 0


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)
