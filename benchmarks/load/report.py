"""The results of the load benchmark: a file that grows row by row and is resumed, and as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from benchmarks.hardware import Hardware
from benchmarks.load.capacity import Capacity, Overhead, Saturation, Timed
from benchmarks.load.outcome import Played
from training.files import write_json

VERSION = 1
OVERLOAD = 5.0
BAR_LOAD, BAR_ATTAINMENT, BAR_OTHERS = 0.7, 0.99, ("fixed", "max_batch", "slack_fit")
BAR_OVERHEAD_P50_MS, BAR_OVERHEAD_P99_MS, BAR_SATURATION, BAR_GOODPUT, BAR_MEMORY = 2.0, 5.0, 0.9, 0.9, 1.05


class Identity(BaseModel):
    """What must be the same for rows to stand in one file. service, models, photos: fingerprints of the source code, of
    the model files and of the pictures."""

    cpu: str
    cores: int
    threads: int
    service: str
    models: str
    data: str
    photos: str
    seconds: float
    mix: str
    late_ok: float
    seed: int
    profile: str


class Memory(BaseModel):
    """Resident MiB of the service: once ready, when a quarter of the trace was played, at the end, and at most."""

    before: float
    quarter: float
    after: float
    most: float


class Row(Played):
    """One policy on one trace. load: of the capacity; trace: its name, spec: all of it; rate: arrivals a second that
    were asked for. simulated_*: what the simulator says of the same trace. client_cpu: share of a core that the client
    took; load_average: of the machine, before."""

    policy: str
    load: float
    trace: str
    spec: str
    rate: float
    simulated_attainment: float
    simulated_effective_ap: float
    simulated_late: int
    simulated_dropped: int
    memory_mib: Memory
    client_cpu: float
    date: str
    load_average: float


class Overload(BaseModel):
    """Goodput, answers on time a second, at the highest load over the best at any load, of one policy and kind of
    trace. memory: resident at the end over that at a quarter."""

    policy: str
    trace: str
    peak_load: float
    peak_goodput_per_s: float
    load: float
    goodput_per_s: float
    ratio: float
    memory: float


class Report(BaseModel):
    """The whole benchmark. The first three of the measurements are None until they are made."""

    version: int = VERSION
    hardware: Hardware
    command: str
    identity: Identity
    default_policy: str
    capacity: Capacity | None = None
    overhead: Overhead | None = None
    saturation: list[Saturation] = []
    overload: list[Overload] = []
    profile: list[Timed] = []
    results: list[Row] = []

    def has(self, policy: str, load: float, trace: str) -> bool:
        return any((row.policy, row.load, row.trace) == (policy, load, trace) for row in self.results)


def resume(path: Path, fresh: Report) -> Report:
    """The report at `path` where it can go on, or `fresh` where there is none.

    Raises ValueError where it was made under other settings, and says which.
    """
    if not path.is_file():
        return fresh
    try:
        kept = Report.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"{path} is no result of this benchmark ({'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}); "
            "name another --out, or replace it with --fresh"
        ) from None
    old, new = kept.identity.model_dump(), fresh.identity.model_dump()
    differing = [f"{name} {old[name]} there, {new[name]} now" for name in old if old[name] != new[name]]
    if differing:
        raise ValueError(
            f"{path} was made under other settings ({'; '.join(differing)}); name another --out, or replace it "
            "with --fresh"
        )
    return kept


def save(report: Report, path: Path) -> None:
    """Write the JSON, whole or not at all."""
    report.overload = overloads(report.results)
    write_json(path, report.model_dump())


def overloads(rows: Sequence[Row]) -> list[Overload]:
    """One of each policy and trace that was played at several loads."""
    found = []
    for policy, trace in dict.fromkeys((row.policy, row.trace) for row in rows):
        own = [row for row in rows if (row.policy, row.trace) == (policy, trace)]
        peak, highest = max(own, key=lambda row: row.goodput_per_s), max(own, key=lambda row: row.load)
        if len(own) < 2 or not peak.goodput_per_s:
            continue
        found.append(
            Overload(
                policy=policy, trace=trace, peak_load=peak.load, peak_goodput_per_s=peak.goodput_per_s,
                load=highest.load, goodput_per_s=highest.goodput_per_s,
                ratio=round(highest.goodput_per_s / peak.goodput_per_s, 4),
                memory=round(highest.memory_mib.after / highest.memory_mib.quarter, 4),
            )
        )  # fmt: skip
    return found


def bars(report: Report) -> list[tuple[str, str, bool]]:
    """What was asked for, what was measured, and whether that is met; of what was measured so far."""
    found: list[tuple[str, str, bool]] = []
    ours = [r for r in report.results if r.policy == report.default_policy]
    at_bar = [r for r in ours if r.load == BAR_LOAD]
    for row in at_bar:
        good = row.attainment >= BAR_ATTAINMENT
        found.append(
            (f"{row.trace} at {BAR_LOAD:.0%}: on time at least {BAR_ATTAINMENT:.0%}", _share(row.attainment), good)
        )
        for other in report.results:
            if (other.load, other.trace) == (row.load, row.trace) and other.policy in BAR_OTHERS:
                what = f"{row.trace} at {BAR_LOAD:.0%}: effective AP.50 above that of {other.policy}"
                measured = f"{row.effective_ap:.4f} against {other.effective_ap:.4f}"
                found.append((what, measured, row.effective_ap > other.effective_ap))
    if report.overhead is not None:
        cost = report.overhead
        for clock, p50, p99 in (
            ("service", cost.server_p50_ms, cost.server_p99_ms),
            ("client", cost.client_p50_ms, cost.client_p99_ms),
        ):
            for name, ms, bar in (("p50", p50, BAR_OVERHEAD_P50_MS), ("p99", p99, BAR_OVERHEAD_P99_MS)):
                what = f"overhead by the {clock}'s clock below {bar:g} ms at {name}"
                found.append((what, f"{ms:.2f} ms", ms < bar))
    for one in report.saturation:
        what = f"saturated {one.variant}@{one.long_side}: at least {BAR_SATURATION:.0%} of the bare engine"
        found.append((what, f"{_share(one.ratio)} of {one.engine_per_s:.1f}/s", one.ratio >= BAR_SATURATION))
    for over in report.overload:
        if over.policy == report.default_policy and over.load >= OVERLOAD:
            what = f"{over.trace} at {over.load:g} times capacity: goodput at least {BAR_GOODPUT:.0%} of its peak"
            found.append((what, _share(over.ratio), over.ratio >= BAR_GOODPUT))
            what = f"{over.trace} at {over.load:g} times capacity: memory at most {BAR_MEMORY:.0%} of a quarter's"
            found.append((what, _share(over.memory), over.memory <= BAR_MEMORY))
    return found


def markdown(report: Report) -> str:
    """Machine and settings, the bars, and a row a run with the simulator's figures beside the measured ones."""
    machine, identity = report.hardware, report.identity
    lines = [
        "# Real load",
        "",
        f"Machine: {machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB; Python {machine.python}; "
        f"{machine.date}; load average {machine.load:g} before. Command: `{report.command}`.",
        "",
        f"Pictures: {identity.data}. Traces of {identity.seconds:g} s, tiers {identity.mix}, {identity.late_ok:.0%} of "
        f"the requests want a late answer rather than none, seed {identity.seed}. Client and service share the "
        "machine; a request is on time by the client's clock. Effective AP.50: mean over all requests, where one that "
        "is late or unanswered counts 0.",
    ]
    if (capacity := report.capacity) is not None:
        lines += [
            "",
            f"Capacity: {capacity.service_per_s:.1f} pictures/s, the saturated service with {capacity.variant} at "
            f"{capacity.long_side}; its profile of the idle engine promises {capacity.profile_per_s:.1f}/s, so the "
            f"simulator's times are {capacity.contention:.2f} times the profile's.",
        ]
    if (overhead := report.overhead) is not None:
        lines += [
            "",
            f"Overhead beside decoding and engine, one request at a time: {overhead.client_p50_ms:.2f} ms at p50 and "
            f"{overhead.client_p99_ms:.2f} ms at p99 by the client's clock ({overhead.server_p50_ms:.2f} and "
            f"{overhead.server_p99_ms:.2f} ms by the service's), {overhead.requests} requests.",
        ]
    if report.saturation:
        lines += ["", "| saturated | bare engine, /s | service, /s | share | client, cores |", "|---|" + "---:|" * 4]
        lines += [
            f"| {s.variant}@{s.long_side} | {s.engine_per_s:.1f} | {s.service_per_s:.1f} | {s.ratio:.1%} | "
            f"{s.client_cpu:.2f} |"
            for s in report.saturation
        ]
    if found := bars(report):
        lines += ["", "| bar | measured | |", "|---|---:|---|"]
        lines += [f"| {what} | {measured} | {'met' if good else '**missed**'} |" for what, measured, good in found]
    if report.results:
        lines += ["", *_results(report)]
    return "\n".join(lines) + "\n"


def _results(report: Report) -> list[str]:
    lines = [
        "| trace | load | policy | on time | simulated | effective AP.50 | simulated | late | dropped | failed | "
        "goodput/s | p50, ms | p99, ms | 503 p99, ms | client late, ms | memory, MiB |",
        "|---|---:|---|" + "---:|" * 13,
    ]
    for row in sorted(report.results, key=lambda one: (one.trace, one.load, one.policy)):
        name = f"**{row.policy}**" if row.policy == report.default_policy else row.policy
        memory = row.memory_mib
        lines.append(
            f"| {row.trace} | {row.load:g} | {name} | {row.attainment:.2%} | {row.simulated_attainment:.2%} | "
            f"{row.effective_ap:.4f} | {row.simulated_effective_ap:.4f} | {row.late} | {row.dropped} | {row.failed} | "
            f"{row.goodput_per_s:.1f} | {_ms(row.p50_ms)} | {_ms(row.p99_ms)} | {_ms(row.refused_p99_ms)} | "
            f"{row.lag_ms_p99:.1f} | {memory.before:.0f} to {memory.after:.0f}, most {memory.most:.0f} |"
        )
    return lines


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _share(value: float) -> str:
    return f"{value:.2%}"
