"""How long things take on this machine: measured at start, kept on disk, corrected by what is seen."""

from __future__ import annotations

import io
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime as ort
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from service.engines.base import Engine, OutOfMemoryError
from service.imaging.decode import Limits, decode, inspect
from service.imaging.sniff import Format
from service.repository.manifest import InputSize
from service.scheduling.arms import batch_curve

_LOG = logging.getLogger(__name__)

_FEWEST_RUNS, _MOST_RUNS = 3, 20
# The largest of a few runs stands in for p99, with a margin that grows as the runs get fewer.
_FEW_RUNS, _FEW_RUNS_FACTOR, _VERY_FEW_RUNS_FACTOR = 10, 1.1, 1.25
_BATCH_SECONDS = 0.5  # for one batch size at one input size
_PAYS = 0.9  # a picture of a batch must cost less than this share of one of half the batch
_HOLDS = 1.01  # times the time of an input that fits into this one
_DECODE_MARGIN = 1.5
_FIT_MS = 4.0  # resizing and padding of one picture, up to 960 pixels

_FRACTIONS = (1, 2, 4, 8)  # of the side, which libjpeg can decode at

_Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Timing(BaseModel):
    """Of one (variant, input size, batch), in milliseconds a batch. runs: how many were measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: str
    height: int
    width: int
    batch: int = Field(default=1, ge=1)
    p50_ms: _Milliseconds
    p99_ms: _Milliseconds
    runs: int


class DecodeCost(BaseModel):
    """Milliseconds per megapixel of the original picture; JPEG by the fraction (1, 2, 4, 8) that it is decoded at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    jpeg: dict[int, _Milliseconds]
    png: _Milliseconds
    webp: _Milliseconds

    @field_validator("jpeg")
    @classmethod
    def _every_fraction(cls, costs: dict[int, float]) -> dict[int, float]:
        if set(costs) != set(_FRACTIONS):
            raise ValueError(f"needs the fractions {_FRACTIONS}, got {sorted(costs)}")
        return costs


class Profile(BaseModel):
    """The stored profile. key names models and hardware; a profile of another key is not used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    timings: tuple[Timing, ...]
    decode: DecodeCost


def hardware_name(threads: int, gpu: str = "") -> str:
    """Processor, cores, runtime and GPU, where one is used, that a profile is valid for."""
    name = f"{machine_name()}, {threads or 'all'} threads, onnxruntime {ort.__version__}"
    return f"{name}, {gpu}" if gpu else name


def machine_name() -> str:
    """Processor and the number of cores that may be used."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    # A container or `taskset` may allow fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model} x{cores}"


def percentile_99(samples: Sequence[float]) -> float:
    """p99 of `samples`, or, of fewer than 100, their largest with a margin on top. Same unit as the samples.

    The margin is a tenth, or a quarter below ten samples: so few have hardly seen the slow tail.
    """
    if len(samples) >= 100:
        return float(np.percentile(samples, 99))
    return max(samples) * (_FEW_RUNS_FACTOR if len(samples) >= _FEW_RUNS else _VERY_FEW_RUNS_FACTOR)


def measure_engine(engine: Engine, size: InputSize, seconds: float, batch: int = 1) -> Timing:
    """Time batches for about `seconds`, but three times at least, after one run of warm-up."""
    pictures = np.random.default_rng(0).integers(0, 256, (batch, size.height, size.width, 3), dtype=np.uint8)
    until = time.perf_counter() + seconds
    engine.run(pictures)
    samples: list[float] = []
    while len(samples) < _FEWEST_RUNS or (len(samples) < _MOST_RUNS and time.perf_counter() < until):
        began = time.perf_counter()
        engine.run(pictures)
        samples.append((time.perf_counter() - began) * 1e3)
    return Timing(
        variant=engine.variant, height=size.height, width=size.width, batch=batch,
        p50_ms=float(np.median(samples)), p99_ms=percentile_99(samples), runs=len(samples),
    )  # fmt: skip


def measure_decoding() -> DecodeCost:
    """Decode drawn pictures in each format."""
    ramp = np.linspace(0, 255, 1600, dtype=np.float32)
    grain = np.random.default_rng(0).normal(0, 6, (1200, 1600, 3)).astype(np.float32)
    drawn = np.clip(ramp[None, :, None] * 0.5 + grain + 60, 0, 255).astype(np.uint8)
    megapixels = float(drawn.size) / 3e6

    def cost(name: str, long_side: int | None) -> float:
        out = io.BytesIO()
        Image.fromarray(drawn).save(out, name, quality=88)
        data = out.getvalue()
        header = inspect(data, Limits(max_pixels=10**8))
        times: list[float] = []
        for _ in range(3):
            began = time.perf_counter()
            decode(data, header, long_side)
            times.append((time.perf_counter() - began) * 1e3)
        return max(times) / megapixels

    jpeg = {scale: cost("JPEG", None if scale == 1 else 1600 // scale) for scale in _FRACTIONS}
    return DecodeCost(jpeg=jpeg, png=cost("PNG", None), webp=cost("WEBP", None))


def measure(
    engines: Sequence[tuple[Engine, Sequence[InputSize]]], key: str, seconds: float, say: Callable[[str], None],
    max_batch: int = 1,
) -> Profile:  # fmt: skip
    """Profile every engine at every size of its own within about `seconds`; `say` is told of the progress.

    Batches up to `max_batch` are measured too, on top of that time, where they pay: for engines that answer two
    pictures of their smallest size in clearly less time than twice one, as few processors do.
    """
    # Small inputs first: their runs are short, the tightest budgets hang on them, and no slow pair may eat their time.
    pairs = sorted(
        ((engine, size) for engine, sizes in engines for size in sizes), key=lambda pair: pair[1].height * pair[1].width
    )
    timings: list[Timing] = []
    until = time.perf_counter() + seconds
    for done, (engine, size) in enumerate(pairs):
        say(f"measuring {engine.variant} at {size} ({done + 1} of {len(pairs)})")
        # What a fast pair leaves over goes to those after it; what a slow one overdraws is taken from them.
        share = max(until - time.perf_counter(), 0.0) / (len(pairs) - done)
        timings.append(measure_engine(engine, size, share))
    for engine, sizes in engines:
        timings += _batches(engine, sizes, timings, max_batch, say)
    return Profile(key=key, timings=tuple(timings), decode=measure_decoding())


def _batches(
    engine: Engine, sizes: Sequence[InputSize], singles: Sequence[Timing], max_batch: int, say: Callable[[str], None]
) -> list[Timing]:
    """Batches of 2, 4, ... at each size, as long as a picture of a batch is cheaper than one of the half batch."""
    found: list[Timing] = []
    for size in sorted(sizes, key=lambda one: one.height * one.width):
        last = next(t for t in singles if (t.variant, t.height, t.width) == (engine.variant, size.height, size.width))
        while last.batch * 2 <= min(max_batch, engine.max_batch or max_batch):
            batch = last.batch * 2
            say(f"measuring {engine.variant} at {size}, batches of {batch}")
            try:
                timing = measure_engine(engine, size, _BATCH_SECONDS, batch)
            except OutOfMemoryError as error:
                _LOG.warning("batches of %d are too large: %s", batch, error)
                break
            if timing.p50_ms / batch > _PAYS * last.p50_ms / last.batch:
                break
            found.append(timing)
            last = timing
        if last.batch == 1:
            break  # larger pictures keep an engine busier still
    return found


def base_latencies(profile: Profile) -> dict[tuple[str, int, int], tuple[float, ...]]:
    """p99 in ms of batches of 1, 2, ... up to the largest measured, by (variant, height, width).

    An input that holds another of the same long side never comes out faster, as chance may measure it: a picture would
    go into the larger one for nothing.
    """
    measured: dict[tuple[str, int, int], dict[int, float]] = {}
    for timing in profile.timings:
        measured.setdefault((timing.variant, timing.height, timing.width), {})[timing.batch] = timing.p99_ms
    curves = {key: batch_curve(by_batch, max(by_batch)) for key, by_batch in measured.items()}
    return {key: _no_faster_than_what_it_holds(key, curves) for key in curves}


def _no_faster_than_what_it_holds(
    key: tuple[str, int, int], curves: Mapping[tuple[str, int, int], tuple[float, ...]]
) -> tuple[float, ...]:
    variant, height, width = key
    curve = list(curves[key])
    for (name, h, w), other in curves.items():
        held = name == variant and max(h, w) == max(height, width) and h <= height and w <= width
        if held and (h, w) != (height, width):
            for b, ms in enumerate(other[: len(curve)]):
                curve[b] = max(curve[b], _HOLDS * ms)
    return tuple(curve)


def decode_ms(cost: DecodeCost, file_format: Format, width: int, height: int, long_side: int) -> float:
    """Predicted decoding and fitting of a picture for an input of this long side."""
    if file_format == "JPEG":
        fraction = max(width, height) / long_side
        per_megapixel = cost.jpeg[2 ** min(max(int(math.log2(fraction)), 0), 3) if fraction >= 1 else 1]
    else:
        per_megapixel = cost.png if file_format == "PNG" else cost.webp
    return per_megapixel * width * height / 1e6 * _DECODE_MARGIN + _FIT_MS


def read_profile(path: Path, key: str, pairs: Iterable[tuple[str, InputSize]] = ()) -> Profile | None:
    """The stored profile, or None where it is absent, damaged, of other models or hardware, or lacks one of `pairs`."""
    try:
        profile = Profile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, ValueError):
        _LOG.warning("the latency profile %s is damaged; measuring anew", path)
        return None
    if profile.key != key:
        return None
    stored = {(t.variant, t.height, t.width) for t in profile.timings if t.batch == 1}
    if any((variant, size.height, size.width) not in stored for variant, size in pairs):
        _LOG.warning("the latency profile %s is incomplete; measuring anew", path)
        return None
    return profile


def write_profile(path: Path, profile: Profile) -> None:
    """Store atomically. A profile that cannot be stored costs the next start time, and nothing else."""
    write_bytes(path, profile.model_dump_json(indent=1).encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write atomically; where that cannot be done, the log says so, and the service goes on."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        _LOG.warning("%s could not be stored: %s", path, error)
