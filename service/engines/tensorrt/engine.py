"""Plans of TensorRT at run time, on `tensorrt` or on the lean runtime, without PyTorch.

Each (input size, batch) has an execution context of its own, since a captured CUDA graph belongs to the state of the
context that it was captured from (TensorRT's developer guide, "CUDA Graphs"). The contexts run one after another on one
stream, so they share their scratch memory, and all of them share the buffers for pictures and results. A run is one
graph: pictures to the device in one copy, the network, results back in one copy.

Names and arguments are checked against TensorRT 10.16 and 11.4, and tests run it on a fake of both that computes
nothing. **It has never run on a GPU.**
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.engines import cuda
from service.engines.base import Detections, DeviceLostError, EngineError, OutOfMemoryError, check_images
from service.engines.tensorrt import api
from service.engines.tensorrt.contract import BOXES, COUNTS, INPUT, SCORES, contract_faults
from service.engines.tensorrt.types import ICudaEngine, IExecutionContext, Runtime, TensorRT

KIND = "tensorrt"
_ALIGNMENT = 256  # of every tensor's address, in bytes
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Extent:
    """What one optimisation profile takes: shapes [N, H, W, 3] from `least` to `most`."""

    least: tuple[int, ...]
    most: tuple[int, ...]

    def holds(self, shape: tuple[int, ...]) -> bool:
        return all(a <= b <= c for a, b, c in zip(self.least, shape, self.most, strict=True))


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the results of n pictures lie in the results' buffer, in bytes, and how much of it they take."""

    boxes: int
    scores: int
    bytes: int


@dataclass(slots=True)
class _Way:
    """One (input size, batch): its context, what it copies, and its graph. warm: it ran, and its capture was tried."""

    context: IExecutionContext
    pixels: int
    layout: _Layout
    graph: cuda.Graph | None = None
    warm: bool = False


class TensorRtEngine:
    """One plan on the GPU. Not thread-safe."""

    kind = KIND

    def __init__(self, variant: str, path: Path, version_compatible: bool = False, plugins: bool = False) -> None:
        """Load `path`. version_compatible: whether the plan was built so; such a plan carries code for the host, which
        TensorRT runs only where that is allowed, so say it of files whose hash was verified. plugins: whether it needs
        TensorRT's own plugins, which the lean runtime has none of.

        Raises `EngineError` naming the file and the cause: no library, no GPU, another version, damage, no memory.
        """
        self.variant, self._path = variant, path
        self._trt: TensorRT = api.load()
        cuda.device()
        before = cuda.free_bytes()
        self._logger = api.new_logger(self._trt)
        if plugins:
            self._register_plugins()
        self._runtime, self._engine = self._deserialise(version_compatible)
        self._most_found = self._check_contract()
        self.extents = _extents(self._engine, path)
        self._ways: dict[tuple[int, ...], _Way] = {}
        self._owned: list[cuda.PinnedArray | cuda.DeviceBuffer | cuda.Stream] = []
        try:
            self._reserve()
        except EngineError:
            self.close()
            raise
        self._memory = max(before - cuda.free_bytes(), 0)

    def _register_plugins(self) -> None:
        if not hasattr(self._trt, "init_libnvinfer_plugins"):
            raise EngineError(f"{self._path} needs TensorRT's plugins, which its lean runtime has not")
        api.register_plugins(self._trt)

    def _deserialise(self, version_compatible: bool) -> tuple[Runtime, ICudaEngine]:
        trt = self._trt
        try:
            content = self._path.read_bytes()
        except OSError as error:
            raise EngineError(f"{self._path} cannot be read: {error.strerror}") from None
        try:
            runtime = api.new_runtime(trt, self._logger)
            if version_compatible:
                runtime.engine_host_code_allowed = True
            engine: ICudaEngine = runtime.deserialize_cuda_engine(content)
        except Exception as error:  # the bindings raise whatever their library does
            reason = f"{error}; {self._logger.reasons()}"
            raise EngineError(f"{self._path} cannot be loaded by TensorRT {trt.__version__}: {reason}") from error
        if engine is None:
            reasons = self._logger.reasons()
            if _memory_ran_out(reasons):
                raise OutOfMemoryError(f"{self._path} does not fit into the GPU's memory: {reasons}")
            raise EngineError(
                f"{self._path} cannot be loaded by TensorRT {trt.__version__}: {reasons}. Plans run on "
                "the version and the kind of GPU that they were built with: python -m export tensorrt builds it anew"
            )
        return runtime, engine

    def _check_contract(self) -> int:
        """Most faces that a picture may have. Raises `EngineError` where the plan is not of a serving graph."""
        engine, most = self._engine, -1
        if BOXES in [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]:
            most = self._most_boxes()
        if faults := contract_faults(self._trt, engine, most):
            raise EngineError(f"{self._path} is not a serving graph: {'; '.join(faults)}")
        if most < 1:
            raise EngineError(f"{self._path} is not a serving graph: how many boxes it gives is known after a run only")
        return most

    def _most_boxes(self) -> int:
        """The second dimension of the boxes, or -1; TensorRT may only know it once the input's shape is given."""
        shape = tuple(self._engine.get_tensor_shape(BOXES))
        if len(shape) == 3 and shape[1] < 1:
            context = self._new_context()
            least = tuple(self._engine.get_tensor_profile_shape(INPUT, 0)[0])
            if context.set_input_shape(INPUT, least):
                shape = tuple(context.get_tensor_shape(BOXES))
        return int(shape[1]) if len(shape) == 3 else -1

    def _new_context(self) -> IExecutionContext:
        """A context without scratch memory. Raises `OutOfMemoryError`."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context: IExecutionContext = self._engine.create_execution_context(strategy=strategy)
        if context is None:
            raise OutOfMemoryError(
                f"{self._path}: TensorRT could not make an execution context: {self._logger.reasons()}"
            )
        return context

    def _reserve(self) -> None:
        """Buffers for the largest shapes, and scratch memory for the most demanding profile."""

        def own(one: cuda.PinnedArray | cuda.DeviceBuffer | cuda.Stream) -> None:
            self._owned.append(one)

        most_pixels = max(math.prod(extent.most) for extent in self.extents)
        most_results = max(self._layout(extent.most[0]).bytes for extent in self.extents)
        own(stream := cuda.Stream())
        own(host_pixels := cuda.PinnedArray((most_pixels,), np.uint8))
        own(host_results := cuda.PinnedArray((most_results,), np.uint8))
        own(pixels := cuda.DeviceBuffer(most_pixels))
        own(results := cuda.DeviceBuffer(most_results))
        own(scratch := cuda.DeviceBuffer(self._engine.device_memory_size_v2))
        self._stream, self._host_pixels, self._host_results = stream, host_pixels, host_results
        self._pixels, self._results, self._scratch = pixels, results, scratch

    def _layout(self, batch: int) -> _Layout:
        boxes = _aligned(4 * batch)
        scores = boxes + _aligned(16 * batch * self._most_found)
        return _Layout(boxes, scores, scores + 4 * batch * self._most_found)

    @property
    def max_batch(self) -> int | None:
        """What every input size of the plan takes."""
        return min(extent.most[0] for extent in self.extents)

    def warm_up(self, height: int, width: int, batch: int = 1) -> None:
        """Also captures the CUDA graph of this size and batch."""
        self.run(np.zeros((batch, height, width, 3), dtype=np.uint8))

    def run(self, images: NDArray[np.uint8]) -> list[Detections]:
        """See `Engine.run`. The first run of a size and batch also captures its graph, and takes longer."""
        if self._engine is None:
            raise EngineError(f"{self._path} is closed")
        check_images(images, self._path)
        shape = tuple(images.shape)
        try:
            way = self._ways.get(shape)
            if way is None:
                way = self._ways[shape] = self._prepare(shape)
            self._host_pixels.array[: way.pixels] = images.reshape(-1)
            self._start(way)
            self._stream.synchronize()
            found = self._fetch(shape[0], way.layout)
            if not way.warm:
                self._capture(shape, way)
            return found
        except EngineError as error:
            raise self._worse(error, shape) from error

    def device_ms(self, images: NDArray[np.uint8]) -> float:
        """Milliseconds of the GPU's clock, from the pictures' copy there to the results' copy back, of another run of
        `images`; for benchmarks. Raises as `run` does."""
        self.run(images)  # its graph is captured then, and the pictures lie where it takes them from
        way = self._ways[tuple(images.shape)]
        begin, end = cuda.Event(), cuda.Event()
        try:
            self._stream.record(begin)
            self._start(way)
            self._stream.record(end)
            return end.milliseconds_since(begin)
        except EngineError as error:
            raise self._worse(error, tuple(images.shape)) from error
        finally:
            for event in (begin, end):
                self._let_go(event)

    def _worse(self, error: EngineError, shape: tuple[int, ...]) -> EngineError:
        """`error` with the file and the input in it, or what is worse: a lost device, which shows when it is asked."""
        kind, text = type(error), str(error)
        try:
            self._stream.synchronize()
        except DeviceLostError as lost:
            kind, text = DeviceLostError, str(lost)
        except EngineError as other:
            text = f"{text}; {other}"
        return kind(text if str(self._path) in text else f"{self._path} failed on input {shape}: {text}")

    def _prepare(self, shape: tuple[int, ...]) -> _Way:
        """A context for one shape, with everything set that stays the same from run to run."""
        profile = self._profile(shape)
        context = self._new_context()
        context.set_device_memory(self._scratch.address, self._scratch.bytes)
        if not context.set_optimization_profile_async(profile, self._stream.handle):
            raise EngineError(f"{self._path}: profile {profile} cannot be chosen: {self._logger.reasons()}")
        self._stream.synchronize()
        if not context.set_input_shape(INPUT, shape):
            raise EngineError(f"{self._path} does not take input {shape}: {self._logger.reasons()}")
        layout = self._layout(shape[0])
        at = self._results.address
        places = {COUNTS: at, BOXES: at + layout.boxes, SCORES: at + layout.scores}
        for name, address in {INPUT: self._pixels.address, **places}.items():
            if not context.set_tensor_address(name, address):
                raise EngineError(f"{self._path}: {name} cannot be placed: {self._logger.reasons()}")
        expected = {COUNTS: shape[:1], BOXES: (shape[0], self._most_found, 4), SCORES: (shape[0], self._most_found)}
        for name, wanted in expected.items():
            if tuple(context.get_tensor_shape(name)) != wanted:
                raise EngineError(f"{self._path}: {name} is {tuple(context.get_tensor_shape(name))}, expected {wanted}")
        return _Way(context, math.prod(shape), layout)

    def _profile(self, shape: tuple[int, ...]) -> int:
        """Number of the first profile that holds `shape`. Raises `EngineError` that says what would be held."""
        for number, extent in enumerate(self.extents):
            if extent.holds(shape):
                return number
        batch, height, width, _ = shape
        fitting = [extent.most[0] for extent in self.extents if extent.holds((extent.least[0], *shape[1:]))]
        if fitting:
            raise EngineError(
                f"{self._path} takes at most {max(fitting)} pictures of {height}x{width} in a run, not {batch}: set "
                "ASFD_MAX_BATCH to that, or build it for more"
            )
        known = ", ".join(f"{e.least[1]}x{e.least[2]}" for e in self.extents)
        raise EngineError(f"{self._path} was not built for input {height}x{width}; it has {known}")

    def _start(self, way: _Way) -> None:
        if way.graph is None:
            self._enqueue(way)
        else:
            self._stream.launch(way.graph)

    def _enqueue(self, way: _Way) -> None:
        """Put one run on the stream."""
        self._stream.copy_in(self._pixels, self._host_pixels, way.pixels)
        if not way.context.execute_async_v3(self._stream.handle):
            reasons = self._logger.reasons()
            raise (OutOfMemoryError if _memory_ran_out(reasons) else EngineError)(f"{self._path} failed: {reasons}")
        self._stream.copy_out(self._host_results, self._results, way.layout.bytes)

    def _capture(self, shape: tuple[int, ...], way: _Way) -> None:
        """Capture the graph; without it, every operation is launched by itself, which is slower and no less right."""
        way.warm = True
        try:
            way.graph = self._stream.capture(lambda: self._enqueue(way))
        except DeviceLostError:
            raise
        except EngineError as error:
            _LOG.warning("%s: no CUDA graph for input %s, so it runs without one: %s", self._path, shape, error)

    def _fetch(self, batch: int, layout: _Layout) -> list[Detections]:
        raw, most = self._host_results.array, self._most_found
        counts = raw[: 4 * batch].view(np.int32)
        boxes = raw[layout.boxes : layout.boxes + 16 * batch * most].view(np.float32).reshape(batch, most, 4)
        scores = raw[layout.scores : layout.bytes].view(np.float32).reshape(batch, most)
        # Copies, since the next run overwrites the buffer.
        return [Detections(boxes[k, :n].copy(), scores[k, :n].copy()) for k, n in enumerate(counts.tolist())]

    def memory_bytes(self) -> int:
        """Of the GPU."""
        return self._memory

    def close(self) -> None:
        """Give everything back, in the order that TensorRT asks for; also what a lost device still lets go of."""
        for way in self._ways.values():
            if way.graph is not None:
                self._let_go(way.graph)
        self._ways.clear()  # and their contexts, which go before their engine
        self._engine = self._runtime = None
        while self._owned:
            self._let_go(self._owned.pop())

    def _let_go(self, one: cuda.Graph | cuda.PinnedArray | cuda.DeviceBuffer | cuda.Stream | cuda.Event) -> None:
        try:
            one.close()
        except EngineError as error:
            _LOG.debug("%s: %s", self._path, error)


def _extents(engine: ICudaEngine, path: Path) -> list[Extent]:
    """What each profile takes, in order."""
    found = []
    for number in range(engine.num_optimization_profiles):
        least, _, most = (tuple(int(n) for n in one) for one in engine.get_tensor_profile_shape(INPUT, number))
        if len(most) != 4 or most[3] != 3:
            raise EngineError(f"{path} is not a serving graph: it takes {most}, expected [N, H, W, 3]")
        found.append(Extent(least, most))
    if not found:
        raise EngineError(f"{path} has no optimisation profile")
    return found


def _aligned(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT


def _memory_ran_out(reasons: str) -> bool:
    """TensorRT tells it by its log alone."""
    lowered = reasons.lower()
    return "out of memory" in lowered or "outofmemory" in lowered or "could not be allocated" in lowered
