"""Which engine runs which variant on this machine: TensorRT, else ONNX Runtime on CUDA, else ONNX Runtime on the CPU.

`ASFD_ENGINE=auto` goes down this list member by member and says each step; any other value takes that or nothing. What
belongs to GPUs is imported only where a GPU seems to be there. **No choice of a GPU engine has been seen outside the
tests' fakes**: no GPU was at hand.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from service.engines.base import Engine, EngineError, OutOfMemoryError
from service.engines.ort import CPU_KIND, CUDA_KIND, CudaOptions, has_cuda, open_cpu, open_cuda
from service.repository.store import Repository, RepositoryError, Variant, for_cpu
from service.settings import Settings

if TYPE_CHECKING:
    from service.engines.cuda import CudaDevice
    from service.engines.tensorrt.plans import StoredPlan

_LOG = logging.getLogger(__name__)

TENSORRT_KIND = "tensorrt"
Reason = Literal[
    "no_library", "no_device", "no_plan", "version_mismatch", "gpu_mismatch", "damaged", "build_failed",
    "out_of_memory", "load_failed",
]  # fmt: skip
"""Why an engine was not taken; also a metric's label."""
REASONS: tuple[Reason, ...] = get_args(Reason)

# Device nodes of NVIDIA's driver: on Linux, on Windows' Linux, on Tegra.
_NODES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvmap")
_LADDER = {
    "auto": (TENSORRT_KIND, CUDA_KIND, CPU_KIND),
    "tensorrt": (TENSORRT_KIND,),
    "cuda": (CUDA_KIND,),
    "cpu": (CPU_KIND,),
}


@dataclass(frozen=True, slots=True)
class Opened:
    """A variant and its engine. identity: what its speed depends on beside the variant's file, for a profile's key."""

    variant: Variant
    engine: Engine
    identity: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A member's step down from one engine to the next. Kinds are those of `Engine.kind`."""

    member: str
    start: str
    to: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Selection:
    """opened: in the order of the variants' names; gpu: its name, empty where none is used."""

    opened: tuple[Opened, ...]
    gpu: str = ""


class _UnavailableError(Exception):
    """An engine cannot be had, for a reason with a sentence."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass
class _Place:
    """This machine, and what the choice is made with. trt: TensorRT's module."""

    settings: Settings
    say: Callable[[str], None]
    stop: threading.Event
    device: CudaDevice | None = None
    trt: Any = None
    missing: dict[str, _UnavailableError] = field(default_factory=dict)


def gpu_suspected() -> bool:
    """Whether a driver of NVIDIA has left a device node here; costs microseconds and imports nothing."""
    return any(Path(node).exists() for node in _NODES)


def open_engines(
    repository: Repository,
    settings: Settings,
    say: Callable[[str], None],
    stepped: Callable[[Step], None] = lambda _step: None,
    stop: threading.Event | None = None,
    suspected: Callable[[], bool] = gpu_suspected,
) -> Selection:
    """Open an engine for each variant that this machine serves. say: told what takes long; stepped: told of each step
    down; stop: ends a build.

    Raises `EngineError` where the engine that the settings name cannot be had, `BuildStoppedError`, `RepositoryError`.
    """
    ladder = _LADDER[settings.engine]
    if ladder == (CPU_KIND,) or (settings.engine == "auto" and not suspected()):
        _LOG.debug("no sign of an NVIDIA GPU, or none is wanted: engines run on the CPU")
        kept, left_out = for_cpu(repository)
        if left_out:
            _LOG.info("left out, since they are for GPUs: %s", ", ".join(left_out))
        return Selection(tuple(_on_cpu(kept.variants, settings)))
    place = _look_around(settings, say, stop or threading.Event())
    opened: list[Opened] = []
    said: set[str] = set()
    try:
        for name, variants in _members(repository):
            for step in _descend(name, variants, ladder, place, opened):
                stepped(step)
                if step.detail not in said:  # what holds for all members is said once
                    said.add(step.detail)
                    _LOG.warning("%s: %s instead of %s (%s): %s", name, step.to, step.start, step.reason, step.detail)
        if not opened:
            for_cpu(repository)  # says that there are only float16 variants
    except BaseException:
        for one in opened:
            one.engine.close()
        raise
    opened.sort(key=lambda one: one.variant.name)
    gpu = place.device.name if place.device and any(one.engine.kind != CPU_KIND for one in opened) else ""
    for one in opened:
        _LOG.info("%s runs on %s%s", one.variant.name, one.engine.kind, f", {gpu}" if gpu else "")
    return Selection(tuple(opened), gpu)


def _look_around(settings: Settings, say: Callable[[str], None], stop: threading.Event) -> _Place:
    from service.engines import cuda
    from service.engines.tensorrt import api

    place = _Place(settings, say, stop)
    reason: Reason = "no_library"
    try:
        cuda.runtime()
        reason = "no_device"
        place.device = cuda.device()
    except EngineError as error:
        place.missing = dict.fromkeys((TENSORRT_KIND, CUDA_KIND), _UnavailableError(reason, str(error)))
        return place
    if not has_cuda():
        place.missing[CUDA_KIND] = _UnavailableError("no_library", "the installed onnxruntime is built without CUDA")
    try:
        place.trt = api.load()
    except EngineError as error:
        place.missing[TENSORRT_KIND] = _UnavailableError("no_library", str(error))
    return place


def _members(repository: Repository) -> list[tuple[str, list[Variant]]]:
    found: dict[str, list[Variant]] = {}
    for variant in repository.variants:
        found.setdefault(variant.manifest.member, []).append(variant)
    return sorted(found.items())


def _descend(
    member: str, variants: list[Variant], ladder: tuple[str, ...], place: _Place, opened: list[Opened]
) -> Iterator[Step]:
    """Add the member's engines to `opened`, from the first kind of `ladder` that can be had, and yield the steps."""
    for at, kind in enumerate(ladder):
        try:
            if kind in place.missing:
                raise place.missing[kind]
            opened += _open(kind, variants, place)
            return
        except _UnavailableError as why:
            if at + 1 == len(ladder):
                raise EngineError(
                    f"ASFD_ENGINE is {place.settings.engine}, which {member} cannot have ({why.reason}): {why.detail}"
                ) from None
            yield Step(member, kind, ladder[at + 1], why.reason, why.detail)


def _open(kind: str, variants: list[Variant], place: _Place) -> list[Opened]:
    if kind == CPU_KIND:
        return _on_cpu(variants, place.settings)
    try:
        return _on_tensorrt(variants, place) if kind == TENSORRT_KIND else [_on_cuda(variants, place)]
    except OutOfMemoryError as error:
        raise _UnavailableError("out_of_memory", str(error)) from error


def _on_cpu(variants: Sequence[Variant], settings: Settings) -> list[Opened]:
    """Engines of all that is not for GPUs, which may be nothing."""
    try:
        kept, _ = for_cpu(Repository(settings.repository, tuple(variants)))
    except RepositoryError:
        return []
    return [Opened(one, open_cpu(one.name, one.path, settings.intra_op_threads)) for one in kept.variants]


def _on_cuda(variants: list[Variant], place: _Place) -> Opened:
    """The member's float16 variant, or its float32 one; of two, that without an operator whose shape is open."""
    fitting = [v for v in variants if v.file.precision in ("fp16", "fp32")]
    if not fitting:
        raise _UnavailableError("load_failed", f"{variants[0].manifest.member} has neither a fp16 nor a fp32 file")
    best = min(fitting, key=lambda v: (v.file.precision != "fp16", v.file.nms != "plain"))
    options = CudaOptions(memory_limit=place.settings.gpu_memory_limit_bytes or None)
    try:
        return Opened(best, _tried(open_cuda(best.name, best.path, options), best), CUDA_KIND)
    except OutOfMemoryError:
        raise
    except EngineError as error:
        raise _UnavailableError("load_failed", str(error)) from error


def _tried(engine: Engine, variant: Variant) -> Engine:
    """`engine`, after a picture of the largest size: libraries that do not fit the GPU, and memory that does not
    suffice, show at the first run and not before. Raises `EngineError`, the engine closed."""
    largest = max(variant.manifest.input_sizes, key=lambda size: size.height * size.width)
    try:
        engine.warm_up(largest.height, largest.width)
    except BaseException:
        engine.close()
        raise
    return engine


def _on_tensorrt(variants: list[Variant], place: _Place) -> list[Opened]:
    """The member's float16 variant, or whichever has a plan; one in INT8 beside it, where somebody built its plan."""
    cache = place.settings.usable_cache_dir()
    main: Opened | None = None
    faults: list[_UnavailableError] = []
    extra: list[Opened] = []
    for variant in sorted(variants, key=lambda v: ("fp16", "fp32", "int8").index(v.file.precision)):
        if main is not None and variant.file.precision != "int8":
            continue
        try:
            one = _from_plan(variant, _stored(variant, cache, place), place)
        except _UnavailableError as why:
            faults.append(why)
            continue
        except OutOfMemoryError as error:
            if main is None:
                _close(extra)
                raise
            _LOG.warning("%s is left out, as the GPU's memory does not suffice for it too: %s", variant.name, error)
            continue
        if variant.file.precision == "int8":
            extra.append(one)
        else:
            main = one
    if main is None:
        # What was wrong with a plan says more than that there is none.
        worst = min(faults, key=lambda one: one.reason == "no_plan")
        buildable = [v for v in variants if v.file.precision == "fp16" and v.file.nms == "plain"]
        if not buildable:
            _close(extra)
            raise worst
        try:
            main = _from_plan(buildable[0], _build(buildable[0], cache, worst, place), place)
        except BaseException:
            _close(extra)
            raise
    return [main, *extra]


def _close(opened: list[Opened]) -> None:
    for one in opened:
        one.engine.close()


def _stored(variant: Variant, cache: Path, place: _Place) -> StoredPlan:
    """The first plan of `variant` that can be used here. Raises `_UnavailableError` with what is wrong with others."""
    from service.engines.tensorrt.plans import stored_plans

    why = _UnavailableError("no_plan", f"{variant.name} has no plan for this GPU: python -m service build-engines")
    for stored in stored_plans(variant.path.parent, variant.manifest, cache):
        if stored.plan.variant == variant.name:
            fault = _fault(variant, stored, place)
            if fault is None:
                return stored
            why = fault
    raise why


def _fault(variant: Variant, stored: StoredPlan, place: _Place) -> _UnavailableError | None:
    """Why a plan cannot be used, or None."""
    from service.engines.tensorrt import api
    from service.engines.tensorrt.plans import damage, usable

    assert place.device is not None
    plan, file = stored.plan, variant.file
    capability, gpu = place.device.compute_capability, place.device.name
    reason: Reason | None = None
    if not plan.version_compatible and not api.has_builder(place.trt):
        why = f"{stored.path} needs the full TensorRT: the lean runtime runs plans built to be version-compatible"
        return _UnavailableError("version_mismatch", why)
    # Each question is asked with the plan's own answer to the others, which tells what the sentence is about.
    if usable(plan, file, plan.tensorrt, plan.compute_capability, plan.gpu):
        reason = "no_plan"  # it is of another model
    elif usable(plan, file, place.trt.__version__, plan.compute_capability, plan.gpu):
        reason = "version_mismatch"
    elif usable(plan, file, plan.tensorrt, capability, gpu):
        reason = "gpu_mismatch"
    if reason is not None:
        said = usable(plan, file, place.trt.__version__, capability, gpu)
        return _UnavailableError(reason, f"{stored.path} cannot be used: {said}")
    if missing := [size for size in variant.manifest.input_sizes if size not in plan.input_sizes]:
        return _UnavailableError("no_plan", f"{stored.path} lacks the input sizes {', '.join(map(str, missing))}")
    if said := damage(stored):
        return _UnavailableError("damaged", said)
    return None


def _from_plan(variant: Variant, stored: StoredPlan, place: _Place) -> Opened:
    from service.engines.tensorrt.engine import TensorRtEngine

    place.say(f"loading {stored.path.name}")
    plan = stored.plan
    try:
        engine = TensorRtEngine(
            variant.name, stored.path, version_compatible=plan.version_compatible, plugins=plan.nms != "plain"
        )
        tried = _tried(engine, variant)
    except OutOfMemoryError:
        raise
    except EngineError as error:
        raise _UnavailableError("load_failed", str(error)) from error
    return Opened(variant, tried, f"{TENSORRT_KIND} {place.trt.__version__} {plan.sha256}")


def _build(variant: Variant, cache: Path, why: _UnavailableError, place: _Place) -> StoredPlan:
    """Build the plan of `variant`. why: there is none to be used, which is raised again where none can be built."""
    from service.engines.tensorrt import api
    from service.engines.tensorrt.build import BuildStoppedError
    from service.engines.tensorrt.make import default_options, make_plan
    from service.engines.tensorrt.plans import engines_folder
    from service.engines.tensorrt.progress import BuildStatus
    from service.engines.tensorrt.timing import timing_cache_file

    assert place.device is not None
    if not place.settings.build_engines or not api.has_builder(place.trt) or not api.has_parser(place.trt):
        raise why
    _LOG.warning("%s; it is built now, which takes minutes", why.detail)
    gpu = place.device
    timing = timing_cache_file(engines_folder(cache), place.trt.__version__, gpu.compute_capability)
    # Version-compatible, as `build-engines` makes them, so that an image with the lean runtime can take the plan over.
    options = replace(
        default_options(variant.file, variant.manifest, timing), max_batch=place.settings.max_batch,
        version_compatible=True,
    )  # fmt: skip
    status = BuildStatus(place.say, f"building {variant.name} for {gpu.name}")
    try:
        return make_plan(variant.path.parent, variant.file, options, cache, status, place.say, place.stop)
    except (OutOfMemoryError, BuildStoppedError):
        raise
    except (EngineError, OSError) as error:
        raise _UnavailableError("build_failed", f"{why.detail}; and it cannot be built: {error}") from error
