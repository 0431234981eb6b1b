"""Start the service, play traces against it, simulate the same traces, and write each result once it is there."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import typer
from tqdm import tqdm

import service
from benchmarks.hardware import describe
from benchmarks.load.capacity import (
    Capacity,
    fastest,
    get_json,
    measure_overhead,
    measure_saturation,
    service_profile,
    sim_profile,
    with_times,
)
from benchmarks.load.client import Reply, Shot, play
from benchmarks.load.outcome import judge, simulated
from benchmarks.load.report import Identity, Memory, Report, Row, resume, save
from benchmarks.load.workload import Photo, Trace, fingerprint, make_trace, shots
from benchmarks.server import Server, running
from service.repository.store import for_cpu, load_repository
from service.settings import Settings
from service.simulation.profile import SimProfile, capacity, read_profile
from service.simulation.simulate import Setting

_SATURATION_S = 8.0
_OVERHEAD_REQUESTS = 200
_PATIENCE_S = 600.0  # of a first start, which measures every model
_LEARNT = ("profile-*.json", "correction-*.json")


@dataclass(frozen=True)
class Plan:
    """What is to be measured. seconds: of each trace; mix, late_ok: see `make_trace`; data: what the photos are, in
    words; cache: where the service's profile is kept between runs; profile: a measured one in place of the service's.
    """

    repository: Path
    policies: tuple[str, ...]
    loads: tuple[float, ...]
    traces: tuple[str, ...]
    seconds: float
    mix: str
    late_ok: float
    seed: int
    threads: int
    data: str
    cache: Path
    out: Path
    command: str
    profile: Path | None = None
    saturation_s: float = _SATURATION_S
    overhead_requests: int = _OVERHEAD_REQUESTS
    tiers_ms: dict[str, float] = field(
        default_factory=lambda: dict(Settings.model_fields["tiers"].get_default(call_default_factory=True))
    )


def run(plan: Plan, photos: Sequence[Photo], fresh: bool = False) -> Report:
    """Measure what `plan.out` does not have yet. Raises OSError, ValueError and RuntimeError."""
    report = Report(
        hardware=describe(), command=plan.command, identity=_identity(plan, photos),
        default_policy=str(Settings.model_fields["policy"].default),
    )  # fmt: skip
    if fresh:
        save(report, plan.out)
    report = resume(plan.out, report)
    cache = plan.cache / hashlib.sha256(report.identity.model_dump_json().encode()).hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    if report.capacity is None or report.overhead is None or not any(cache.glob("profile-*.json")):
        _measure_machine(plan, photos, report, cache)
        save(report, plan.out)
    assert report.capacity is not None
    work = [(t, load, p) for t in plan.traces for load in plan.loads for p in plan.policies]
    left = [(trace, load, policy) for trace, load, policy in work if not report.has(policy, load, trace)]
    if len(left) < len(work):
        typer.echo(f"{len(work) - len(left)} of {len(work)} runs are there already")
    for number, (name, load, policy) in enumerate(left):
        rate = load * report.capacity.service_per_s
        trace = make_trace(name, rate, plan.seconds, plan.mix, plan.late_ok, photos, plan.seed)
        title = f"{number + 1}/{len(left)} {name} {load:g} {policy}"
        row = _play_one(plan, photos, report, cache, trace, load, rate, policy, title)
        report.results.append(row)
        save(report, plan.out)
        typer.echo(
            f"{title}: on time {row.attainment:.1%} (simulated {row.simulated_attainment:.1%}), effective AP "
            f"{row.effective_ap:.4f} ({row.simulated_effective_ap:.4f}), late {row.late}, dropped {row.dropped}, "
            f"failed {row.failed}, goodput {row.goodput_per_s:.1f}/s"
        )
    return report


def _measure_machine(plan: Plan, photos: Sequence[Photo], report: Report, cache: Path) -> None:
    """Profile, overhead, saturation and capacity, which rows stand on; those that the report has stay as they are."""
    with running(plan.repository, cache, plan.threads, _PATIENCE_S) as server:
        typer.echo(f"the service is ready after {server.ready_seconds:.1f} s")
        rows = service_profile(cache, get_json(server.port, "/models"))
        if plan.profile is not None:
            rows = with_times(rows, read_profile(plan.profile))
        report.profile = report.profile or rows
        if report.overhead is None:
            report.overhead = measure_overhead(server.port, photos, plan.overhead_requests)
            typer.echo(
                f"overhead {report.overhead.client_p50_ms:.2f} ms at p50, {report.overhead.client_p99_ms:.2f} at p99"
            )
        # Where the cache alone was lost, this is done for the experience that all policies start from.
        variant, side = fastest(report.profile)
        sides = sorted({max(row.height, row.width) for row in report.profile if row.variant == variant})
        found = []
        for one in sides:
            found.append(
                measure_saturation(server.port, plan.repository, variant, one, photos, plan.saturation_s, plan.threads)
            )
            typer.echo(
                f"{variant}@{one}: engine {found[-1].engine_per_s:.1f}/s, service {found[-1].service_per_s:.1f}/s "
                f"({found[-1].ratio:.1%})"
            )
    if report.capacity is None:
        report.saturation = found
        served = next(one.service_per_s for one in found if one.long_side == side)
        promised = capacity(sim_profile(report.profile), [(photo.width, photo.height, 1.0) for photo in photos])
        report.capacity = Capacity(
            variant=variant, long_side=side, profile_per_s=round(promised, 3), service_per_s=served,
            contention=round(promised / served, 4),
        )  # fmt: skip


def _play_one(
    plan: Plan, photos: Sequence[Photo], report: Report, cache: Path, trace: Trace, load: float, rate: float,
    policy: str, title: str,
) -> Row:  # fmt: skip
    assert report.capacity is not None
    assert report.overhead is not None
    requests = shots(trace, photos, plan.tiers_ms)
    with tempfile.TemporaryDirectory(prefix="asfd-load-") as folder:
        # Every policy starts from the same profile, and from the same experience of it.
        for path in (found for pattern in _LEARNT for found in cache.glob(pattern)):
            shutil.copy2(path, folder)
        average = os.getloadavg()[0]
        environment = {"ASFD_POLICY": policy}
        with (
            running(plan.repository, Path(folder), plan.threads, _PATIENCE_S, environment) as server,
            tqdm(total=len(requests), desc=title, unit="request", leave=False, mininterval=1.0) as bar,
        ):
            cpu, began = time.process_time(), time.perf_counter()
            replies, memory = asyncio.run(_watched(server, requests, plan.seconds, bar.update))
            share = (time.process_time() - cpu) / (time.perf_counter() - began)
    played = judge(requests, replies)
    result = simulated(policy, trace, _under_load(report), _setting(report), plan.tiers_ms)
    return Row(
        **played.model_dump(), policy=policy, load=load, trace=trace.name, spec=trace.spec, rate=round(rate, 3),
        simulated_attainment=round(result.attainment, 5), simulated_effective_ap=round(result.effective_ap, 5),
        simulated_late=result.late, simulated_dropped=sum(result.dropped.values()), memory_mib=memory,
        client_cpu=round(share, 3), date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        load_average=round(average, 2),
    )  # fmt: skip


def _under_load(report: Report) -> SimProfile:
    """The profile with the times of a machine that decodes, serves and sends beside the engine: the service learns
    these as it runs, and the simulator does not."""
    assert report.capacity is not None
    return sim_profile(report.profile, report.capacity.contention)


def _setting(report: Report) -> Setting:
    assert report.overhead is not None
    defaults = Settings.model_fields
    return Setting(
        decode_ms=report.overhead.decode_ms,
        decode_cv=report.overhead.decode_cv,
        decode_threads=int(defaults["decode_threads"].default),
        queue_limit=int(defaults["queue_limit"].default),
        seed=report.identity.seed,
    )


async def _watched(
    server: Server, requests: Sequence[Shot], seconds: float, told: Callable[[], object]
) -> tuple[list[Reply], Memory]:
    """Play, and look at the service's memory four times a second."""
    before = server.resident_mib()
    seen = [before]
    quarter = [before]

    async def watch() -> None:
        began = time.perf_counter()
        while True:
            await asyncio.sleep(0.25)
            seen.append(server.resident_mib())
            if time.perf_counter() <= began + seconds / 4:
                quarter[0] = seen[-1]

    watcher = asyncio.create_task(watch())
    try:
        replies = await play(server.port, requests, told=told)
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
    after = server.resident_mib()
    most = max(*seen, after)
    return replies, Memory(
        before=round(before, 1), quarter=round(quarter[0], 1), after=round(after, 1), most=round(most, 1)
    )


def _identity(plan: Plan, photos: Sequence[Photo]) -> Identity:
    machine = describe()
    repository, _ = for_cpu(load_repository(plan.repository))
    models = hashlib.sha256("\n".join(f"{one.name} {one.file.sha256}" for one in repository.variants).encode())
    return Identity(
        cpu=machine.cpu, cores=machine.cores, threads=plan.threads, service=_source_fingerprint(),
        models=models.hexdigest()[:16], data=plan.data, photos=fingerprint(photos), seconds=plan.seconds, mix=plan.mix,
        late_ok=plan.late_ok, seed=plan.seed,
        profile="" if plan.profile is None else hashlib.sha256(plan.profile.read_bytes()).hexdigest()[:16],
    )  # fmt: skip


def _source_fingerprint() -> str:
    """Of the service's code: rows of before and after a change must not stand in one table."""
    root = Path(service.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
