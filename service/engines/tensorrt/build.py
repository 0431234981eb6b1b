"""From an ONNX file to a plan: parse, configure, build, look at what came out.

Networks are strongly typed: what is computed in float16 is what the ONNX file types so, in TensorRT 10 as in 11. INT8
is another ONNX file, with QuantizeLinear and DequantizeLinear in it; there is no calibration here.

Written against TensorRT's Python API and run on a fake made from it. **No plan has been built with this yet**: no
machine with TensorRT's libraries and a GPU was at hand.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from service.engines.base import EngineError
from service.engines.cuda import device
from service.engines.tensorrt import api
from service.engines.tensorrt.contract import INPUT, check_plan
from service.engines.tensorrt.efficient_nms import attach
from service.engines.tensorrt.timing import attach_timing_cache, keep_timing_cache
from service.engines.tensorrt.types import (
    Builder,
    IBuilderConfig,
    INetworkDefinition,
    IOptimizationProfile,
    OnnxParser,
    ParserError,
    TensorRT,
)
from service.repository.manifest import HardwareCompatibility, InputSize, Thresholds

_SHOWN = 5  # errors of the parser
_log = logging.getLogger(__name__)


class BuildStoppedError(EngineError):
    """Somebody wanted the build to stop. What was timed until then is in the timing cache; nothing else is written."""


class Progress(Protocol):
    """Hears of the builder's phases, which lie in one another, from whatever thread. Steps count from 0."""

    def start(self, phase: str, parent: str | None, steps: int) -> None: ...

    def step(self, phase: str, step: int) -> None: ...

    def finish(self, phase: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build.

    input_sizes: each becomes an optimisation profile of its own, with batches from 1 to `max_batch`, tuned for
    `opt_batch`. One profile for all sizes would be tuned for one of them, and its memory planned for the largest.
    opt_batch: 0 takes half of `max_batch`, between the single picture of a quiet service and the full batch of a busy
    one. level: 0 (fastest build) to 5; 3 is TensorRT's own. workspace_bytes: 0 leaves all memory to it.
    tf32: whether float32 products may round their factors to TF32. version_compatible: carries the lean runtime along
    (some 40 MB more), and later versions of TensorRT run the plan, `tensorrt_lean` as well. timing_cache: file that is
    read and written; None goes without. max_detections: what the graph was exported with. efficient_nms: attach the
    plugin, with these thresholds, to a graph that ends in candidates.
    """

    input_sizes: tuple[InputSize, ...]
    max_batch: int = 8
    opt_batch: int = 0
    level: int = 3
    workspace_bytes: int = 0
    tf32: bool = True
    version_compatible: bool = False
    hardware_compatible: HardwareCompatibility = "none"
    timing_cache: Path | None = None
    max_detections: int = 750
    efficient_nms: Thresholds | None = None

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if not self.input_sizes:
            raise ValueError("a plan needs at least one input size")
        if not 1 <= self.tuned_batch <= self.max_batch:
            raise ValueError(f"batches go from 1 to {self.max_batch}; it cannot be tuned for {self.opt_batch}")
        if not 0 <= self.level <= 5:
            raise ValueError(f"the builder's levels are 0 to 5, not {self.level}")
        if self.efficient_nms and self.version_compatible:
            raise ValueError(
                f"{api.EFFICIENT_NMS} is no part of the lean runtime, so its plans cannot be version-compatible; "
                "take plain NMS"
            )

    @property
    def tuned_batch(self) -> int:
        return self.opt_batch or max(self.max_batch // 2, 1)


def build_plan(
    model: Path,
    options: BuildOptions,
    progress: Progress | None = None,
    say: Callable[[str], None] = _log.info,
    stop: threading.Event | None = None,
) -> bytes:
    """Compile `model` for the GPU here. Takes minutes; `say` is told what would surprise.

    Setting `stop` ends the build after the step that it is at, and so does Ctrl-C. Raises `EngineError` that says what
    is missing or what the builder disliked, `BuildStoppedError`, KeyboardInterrupt.
    """
    trt = builder_module(model)
    device()
    logger = api.new_logger(trt)
    builder = api.new_builder(trt, logger)
    network: INetworkDefinition = builder.create_network(api.network_flags(trt))
    parser = _parse(trt, network, logger, model)
    if options.efficient_nms:
        attach(trt, network, options.efficient_nms, model)
    config = _configure(trt, builder, options, model)
    cache = attach_timing_cache(config, options.timing_cache, say)
    stop = stop or threading.Event()
    monitor = _monitor(trt, progress, stop)
    config.progress_monitor = monitor

    def work() -> bytes | None:
        # The parser owns weights that the network refers to, and the logger and the monitor are called until the end.
        alive = (parser, logger, monitor)
        memory = builder.build_serialized_network(network, config)
        if cache is not None and options.timing_cache is not None:
            keep_timing_cache(cache, options.timing_cache, say)
        del alive
        return None if memory is None else bytes(memory)

    plan = _in_thread(work, stop, say)
    if plan is None and stop.is_set():
        raise BuildStoppedError(f"{model}: the build was stopped")
    if plan is None:
        raise EngineError(f"{model} cannot be built by TensorRT {trt.__version__}: {logger.reasons()}")
    check_plan(trt, logger, plan, options.input_sizes, options.max_batch, options.max_detections, str(model))
    return plan


def builder_module(model: Path) -> TensorRT:
    """TensorRT with builder and parser. Raises `EngineError` that says what to install to build `model`."""
    trt = api.load()
    if not api.has_builder(trt) or not api.has_parser(trt):
        raise EngineError(
            f"{model} cannot be built here: only TensorRT's lean runtime is installed, which runs plans and builds "
            f"none: pip install 'tensorrt-cu13=={trt.__version__}'"
        )
    return trt


def _parse(trt: TensorRT, network: INetworkDefinition, logger: api.Log, model: Path) -> OnnxParser:
    """Fill the network. Raises `EngineError` with all that the parser disliked in a sentence."""
    try:
        data = model.read_bytes()
    except OSError as error:
        raise EngineError(f"{model} cannot be read ({error.strerror})") from None
    parser: OnnxParser = trt.OnnxParser(network, logger)
    if parser.parse(data, str(model)):
        return parser
    faults = []
    for index in range(parser.num_errors):
        found: ParserError = parser.get_error(index)
        where = f"{found.node_operator()} {found.node_name()!r}: " if found.node_operator() else ""
        faults.append(where + " ".join(found.desc().split()))
    faults = list(dict.fromkeys(faults))
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    reasons = "; ".join(faults[:_SHOWN]) + more or logger.reasons()
    raise EngineError(f"{model} is not a graph that TensorRT {trt.__version__} reads: {reasons}")


def _configure(trt: TensorRT, builder: Builder, options: BuildOptions, model: Path) -> IBuilderConfig:
    config: IBuilderConfig = builder.create_builder_config()
    config.builder_optimization_level = options.level
    if options.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible == "ampere_plus":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    elif options.hardware_compatible == "same_compute_capability":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    for size in options.input_sizes:
        profile: IOptimizationProfile = builder.create_optimization_profile()
        low, middle, high = (
            (batch, size.height, size.width, 3) for batch in (1, options.tuned_batch, options.max_batch)
        )
        profile.set_shape(INPUT, min=low, opt=middle, max=high)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{model}: TensorRT takes no profile of {size} with up to {options.max_batch} pictures")
    return config


def _in_thread(work: Callable[[], bytes | None], stop: threading.Event, say: Callable[[str], None]) -> bytes | None:
    """`work()` in a thread of its own. The library holds its thread for minutes, and an exception in its callbacks
    would end the process, so that Ctrl-C has to be heard by a thread that does nothing else."""
    outcome: list[bytes | None] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="tensorrt-build", daemon=True)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
    except KeyboardInterrupt:
        stop.set()
        say("stopping after the step that TensorRT is at; Ctrl-C again leaves at once")
        while thread.is_alive():
            thread.join(0.2)
        raise
    if failure:
        raise failure[0]
    return outcome[0]


def _monitor(trt: TensorRT, progress: Progress | None, stop: threading.Event) -> Any:
    """TensorRT's interface in front of `progress`. Nothing may be raised into TensorRT, which would not survive it."""

    def tell(call: Callable[[Progress], None]) -> None:
        if progress is not None:
            try:
                call(progress)
            except Exception:
                _log.exception("the progress of the build cannot be shown")

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tell(lambda progress: progress.start(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            tell(lambda progress: progress.step(phase_name, step))
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            tell(lambda progress: progress.finish(phase_name))

    return Monitor()
