"""What the machine can do: the service's own profile, the bare engine's throughput, the service's, and its overhead."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from benchmarks.load.client import HOST, Shot, one_by_one, saturate
from benchmarks.load.outcome import percentile
from benchmarks.load.workload import Photo
from service import profiling
from service.engines.ort import open_cpu
from service.imaging.decode import Limits, decode, inspect
from service.letterbox import fitting_size, letterbox
from service.repository.manifest import InputSize
from service.repository.store import load_repository
from service.scheduling.arms import batch_curve
from service.scheduling.problem import Arm
from service.simulation.profile import SimProfile

CLIENTS = 8
"""Concurrent requests that saturate one engine and its decoders."""

_BUDGET_MS = 60_000.0


class Timed(BaseModel):
    """A row of `python -m export profile`. Milliseconds of a batch."""

    variant: str
    height: int
    width: int
    batch: int
    p50_ms: float
    p99_ms: float
    runs: int
    ap50: float


class Saturation(BaseModel):
    """Pictures a second at one variant and long side: of the bare engine, in a loop on the same photos one at a time,
    already decoded, and of the service with eight clients, decoding and HTTP included. client_cpu: share of a core that
    the client took meanwhile."""

    variant: str
    long_side: int
    engine_per_s: float
    service_per_s: float
    ratio: float
    client_cpu: float


class Overhead(BaseModel):
    """What a request takes beside decoding and the engine, one at a time, in milliseconds. client: by its clock, with
    HTTP and the client itself; server: what the service counts, without writing the answer; queue: of it, the wait.

    decode_ms, decode_cv: mean and coefficient of variation of decoding. load: load average before.
    """

    requests: int
    client_p50_ms: float
    client_p99_ms: float
    server_p50_ms: float
    server_p99_ms: float
    queue_p50_ms: float
    queue_p99_ms: float
    decode_ms: float
    decode_cv: float
    load: float


class Capacity(BaseModel):
    """service_per_s: pictures a second that load 1 stands for, those of the saturated service on its fastest arms;
    profile_per_s: what its profile of the idle engine promises; contention: the quotient, by which the simulator's
    times are longer."""

    variant: str
    long_side: int
    profile_per_s: float
    service_per_s: float
    contention: float


def get_json(port: int, path: str) -> Any:
    """Raises RuntimeError on any other status than 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"GET {path} answered {response.status}: {body[:300].decode(errors='replace')}")
    return json.loads(body)


def service_profile(cache: Path, models: Mapping[str, Any]) -> list[Timed]:
    """What the service measured at its start. cache: its folder, of one start; models: its GET /models.

    Raises FileNotFoundError where it left no profile.
    """
    found = sorted(cache.glob("profile-*.json"))
    if not found:
        raise FileNotFoundError(f"the service left no profile in {cache}")
    profile = profiling.Profile.model_validate_json(max(found, key=lambda path: path.stat().st_mtime).read_bytes())
    ap50 = {
        (variant["variant"], size["height"], size["width"]): size["ap50"]
        for variant in models["variants"]
        for size in variant["inputs"]
    }
    return [Timed(**t.model_dump(), ap50=ap50[t.variant, t.height, t.width] or 0.0) for t in profile.timings]


def sim_profile(rows: Sequence[Timed], slower: float = 1.0) -> SimProfile:
    """Arms as the service has them, each up to the largest batch that was measured. slower: factor of all times."""
    groups: dict[tuple[str, int, int], dict[int, Timed]] = {}
    for row in rows:
        groups.setdefault((row.variant, row.height, row.width), {})[row.batch] = row
    arms, medians = [], []
    for (variant, height, width), group in groups.items():
        p50 = batch_curve({b: slower * row.p50_ms for b, row in group.items()}, max(group))
        p99 = batch_curve({b: slower * max(row.p99_ms, row.p50_ms) for b, row in group.items()}, max(group))
        upper = tuple(max(a, b) for a, b in zip(p50, p99, strict=True))
        arms.append(Arm(variant, InputSize(height=height, width=width), group[min(group)].ap50, upper))
        medians.append(p50)
    return SimProfile(tuple(arms), tuple(medians), profiling.machine_name(), time.strftime("%Y-%m-%d"))


def fastest(rows: Sequence[Timed]) -> tuple[str, int]:
    """Variant and long side that answer a picture soonest, at their best batch, on average over input shapes."""
    best: dict[tuple[str, int, int], float] = {}
    for row in rows:
        key = (row.variant, row.height, row.width)
        best[key] = min(best.get(key, float("inf")), row.p50_ms / row.batch)
    by_pair: dict[tuple[str, int], list[float]] = {}
    for (variant, height, width), ms in best.items():
        by_pair.setdefault((variant, max(height, width)), []).append(ms)
    return min(by_pair, key=lambda pair: statistics.fmean(by_pair[pair]))


def engine_rate(
    repository: Path, variant: str, long_side: int, photos: Sequence[Photo], seconds: float, threads: int
) -> float:
    """Pictures a second of the engine alone, on photos decoded and fitted before, one at a time, round and round."""
    one = next(found for found in load_repository(repository).variants if found.name == variant)
    sizes = [size for size in one.manifest.input_sizes if size.long_side == long_side]
    canvases = []
    for photo in photos:
        size = fitting_size(photo.width, photo.height, sizes)
        assert size is not None  # squares hold everything
        header = inspect(photo.data, Limits(64_000_000))
        picture = decode(photo.data, header, long_side).picture
        canvases.append(letterbox(picture, size, photo.width, photo.height).canvas[None])
    engine = open_cpu(variant, one.path, threads)
    try:
        for canvas in {canvas.shape: canvas for canvas in canvases}.values():
            engine.run(canvas)
        count, began = 0, time.perf_counter()
        while time.perf_counter() < began + seconds:
            engine.run(canvases[count % len(canvases)])
            count += 1
        return count / (time.perf_counter() - began)
    finally:
        engine.close()


def measure_saturation(
    port: int, repository: Path, variant: str, long_side: int, photos: Sequence[Photo], seconds: float, threads: int
) -> Saturation:
    """The bare engine while the service idles, before and after the service itself, each half as long; same photos."""
    before = engine_rate(repository, variant, long_side, photos, seconds / 2, threads)
    target = f"/detect?variant={variant}&long_side={long_side}&latency_ms={_BUDGET_MS:g}"
    requests = [Shot(0.0, target, photo.data, photo.content_type, _BUDGET_MS) for photo in photos]
    cpu, began = time.process_time(), time.perf_counter()
    served = asyncio.run(saturate(port, requests, seconds, CLIENTS))
    share = (time.process_time() - cpu) / (time.perf_counter() - began)
    engine = (before + engine_rate(repository, variant, long_side, photos, seconds / 2, threads)) / 2
    return Saturation(
        variant=variant, long_side=long_side, engine_per_s=round(engine, 2), service_per_s=round(served, 2),
        ratio=round(served / engine, 4), client_cpu=round(share, 3),
    )  # fmt: skip


def measure_overhead(port: int, photos: Sequence[Photo], requests: int, warm_up: int = 10) -> Overhead:
    """One request at a time, with a long budget, over the photos in turn. Raises RuntimeError on any status but 200."""
    load = os.getloadavg()[0]
    target = f"/detect?latency_ms={_BUDGET_MS:g}"
    shots = [
        Shot(0.0, target, photo.data, photo.content_type, _BUDGET_MS)
        for photo in (photos[k % len(photos)] for k in range(warm_up + requests))
    ]
    replies = asyncio.run(one_by_one(port, shots))
    for reply in replies:
        if reply.status != 200:
            raise RuntimeError(f"{target} answered {reply.status}: {reply.body[:300].decode(errors='replace')}")
    stages = [(reply.latency_ms, reply.stages()) for reply in replies[warm_up:]]
    client = [latency - stage["decode"] - stage["infer"] for latency, stage in stages]
    server = [stage["total"] - stage["decode"] - stage["infer"] for _, stage in stages]
    decodes, queues = [stage["decode"] for _, stage in stages], [stage["queue"] for _, stage in stages]
    mean = statistics.fmean(decodes)
    return Overhead(
        requests=requests,
        client_p50_ms=percentile(client, 50) or 0.0, client_p99_ms=percentile(client, 99) or 0.0,
        server_p50_ms=percentile(server, 50) or 0.0, server_p99_ms=percentile(server, 99) or 0.0,
        queue_p50_ms=percentile(queues, 50) or 0.0, queue_p99_ms=percentile(queues, 99) or 0.0,
        decode_ms=round(mean, 3), decode_cv=round(statistics.pstdev(decodes) / mean, 3), load=round(load, 2),
    )  # fmt: skip


def with_times(rows: Sequence[Timed], profile: SimProfile) -> list[Timed]:
    """The rows of a profile that was measured elsewhere, in the place of the service's own.

    Raises ValueError where it lacks an arm of `rows`, which are the service's, or has another accuracy for one.
    """
    known = {(arm.variant, arm.size.height, arm.size.width): k for k, arm in enumerate(profile.arms)}
    replaced = []
    for row in rows:
        k = known.get((row.variant, row.height, row.width))
        if k is None:
            raise ValueError(
                f"the profile has no {row.variant} at {row.height}x{row.width}; make it of the same models"
            )
        batch = min(row.batch, len(profile.p50_ms[k])) - 1
        times = {"p50_ms": profile.p50_ms[k][batch], "p99_ms": profile.arms[k].latency_ms[batch]}
        replaced.append(row.model_copy(update=times))
    return replaced
