"""Time, memory and parity of one engine."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.engines.cases import Case
from benchmarks.engines.floor import Device, Work, floor_of
from benchmarks.engines.report import Parity, Row
from export.profile import resized, timing_photo
from export.verify import parity
from service.engines.base import Detections, Engine, EngineError
from service.engines.tensorrt.engine import TensorRtEngine
from service.profiling import percentile_99
from service.repository.manifest import InputSize

_WARM_UP, _FEWEST, _MOST, _ON_DEVICE = 3, 5, 1000, 100
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Timing:
    """milliseconds: wall clock of each run, from pictures in host memory to boxes in host memory; device: of its part
    on the GPU, by CUDA events, where the engine's work is on PyTorch's stream, or TensorRT's engine measures it."""

    milliseconds: list[float]
    device: list[float]


def pictures(data: Path | None, size: InputSize, count: int) -> tuple[list[Pixels], str]:
    """`count` real pictures at exactly that size, uint8 [H, W, 3], and what they are: half of them the photos of the
    `dev` split with the most faces, the others evenly spaced. Without `data`, NASA's astronaut side by side.

    Raises FileNotFoundError, ValueError.
    """
    if data is None:
        tiled = timing_photo(None)
        shifted = [np.roll(tiled, at * tiled.shape[1] // count, axis=1) for at in range(count)]
        return [
            resized(photo, size).copy() for photo in shifted
        ], f"the astronaut (scikit-image), shifted {count} times"
    from training.data.cache import load_picture
    from training.evaluation.detections import read_split

    photos, images = read_split(data, "dev")
    most = sorted(photos, key=lambda photo: (-int((~photo.ignore).sum()), photo.name))[: count // 2]
    spaced, _ = read_split(data, "dev", count)
    chosen = list(dict.fromkeys(photo.name for photo in (*most, *spaced)))[:count]
    words = f"{len(chosen)} of {data.resolve().name}, dev split, half of them those with the most faces"
    return [resized(load_picture(images / name), size).copy() for name in chosen], words  # PyTorch wants them writable


def compare(name: str, engine: Engine, canvases: Sequence[Pixels], reference: Sequence[Detections]) -> Parity:
    """One picture at a time, against the reference's detections of the same pictures. Raises `EngineError`."""
    parts = [
        parity(engine.run(canvas[None])[0], wanted) for canvas, wanted in zip(canvases, reference, strict=True)
    ]  # fmt: skip
    return Parity(
        name=name, pictures=len(parts), compared=sum(one.compared for one in parts),
        unmatched=sum(one.unmatched for one in parts), box=round(max(one.box for one in parts), 4),
        score=round(max(one.score for one in parts), 6),
    )  # fmt: skip


def timed(engine: Engine, batch: Pixels, seconds: float, events: bool) -> Timing:
    """Run a batch for about so many seconds, five times at least, after three runs of warm-up. Raises `EngineError`."""
    for _ in range(_WARM_UP):
        engine.run(batch)
    samples: list[float] = []
    on_device: list[float] = []
    until = time.perf_counter() + seconds
    while len(samples) < _FEWEST or (len(samples) < _MOST and time.perf_counter() < until):
        if events:
            import torch

            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
        began = time.perf_counter()
        engine.run(batch)
        samples.append((time.perf_counter() - began) * 1e3)
        if events:
            last.record()
            last.synchronize()
            on_device.append(first.elapsed_time(last))
    if isinstance(engine, TensorRtEngine):
        on_device = [engine.device_ms(batch) for _ in range(min(len(samples), _ON_DEVICE))]
    return Timing(samples, on_device)


def row_of(
    case: Case, engine: Engine, canvases: Sequence[Pixels], batch: int, seconds: float, work: Work, device: Device
) -> Row:
    """Time one batch size. Raises `EngineError`."""
    stack = np.stack([canvases[at % len(canvases)] for at in range(batch)])
    load = os.getloadavg()[0]
    timing = timed(engine, stack, seconds, events=case.device == "cuda" and engine.kind == "pytorch")
    p50 = float(np.median(timing.milliseconds))
    floor = floor_of(work, device, case.precision, batch)
    return Row(
        engine=case.engine, member=case.member, variant=case.variant, precision=case.precision, nms=case.nms,
        height=stack.shape[1], width=stack.shape[2], batch=batch, runs=len(timing.milliseconds), p50_ms=round(p50, 3),
        p99_ms=round(percentile_99(timing.milliseconds), 3), pictures_s=round(batch / p50 * 1e3, 2),
        device_p50_ms=round(float(np.median(timing.device)), 3) if timing.device else None,
        engine_mib=round(engine.memory_bytes() / 2**20, 1),
        process_mib=round(psutil.Process().memory_info().rss / 2**20, 1), gpu_mib=_gpu_mib(case),
        floor_ms=round(floor.ms, 4), memory_floor_ms=round(floor.memory_ms, 4),
        arithmetic_floor_ms=None if floor.arithmetic_ms is None else round(floor.arithmetic_ms, 4),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), load=round(load, 2),
    )  # fmt: skip


def _gpu_mib(case: Case) -> float | None:
    """What is in use on the whole GPU, others included."""
    if case.device != "cuda":
        return None
    from service.engines import cuda

    try:
        return round((cuda.device().memory_bytes - cuda.free_bytes()) / 2**20, 1)
    except EngineError:
        return None
