"""The results of the engine benchmark: a file that grows row by row, and as text."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from benchmarks.engines.floor import Device
from benchmarks.hardware import Hardware
from service.repository.manifest import Precision
from training.files import write_bytes, write_json

QUIET = 0.25
"""Load average a core, before the benchmark, from which on its times are called contended."""


class Parity(BaseModel):
    """One engine against the reference. compared: detections of the reference from score 0.2 on; unmatched: without a
    partner within a pixel and 0.02 of score; box: largest difference of the others in pixels, score: likewise."""

    name: str
    pictures: int
    compared: int
    unmatched: int
    box: float
    score: float


class Row(BaseModel):
    """One form of a member on one engine, at one batch size. Milliseconds of the whole batch, from pictures in host
    memory to boxes in host memory; p99: with a margin where there are fewer than 100 runs; pictures_s: batch / p50.

    device_p50_ms: the same by CUDA events; engine_mib: what loading took; process_mib: resident, of the whole
    benchmark; gpu_mib: in use on the whole GPU; load: average before. Floors: see `benchmarks.engines.floor`.
    """

    engine: str
    member: str
    variant: str
    precision: Precision
    nms: str
    height: int
    width: int
    batch: int
    runs: int
    p50_ms: float
    p99_ms: float
    pictures_s: float
    device_p50_ms: float | None
    engine_mib: float
    process_mib: float
    gpu_mib: float | None
    floor_ms: float
    arithmetic_floor_ms: float | None
    memory_floor_ms: float
    date: str
    load: float


class Share(BaseModel):
    """Where the time goes: an operator's share of the engine's own time, and its milliseconds a run."""

    operator: str
    share: float
    ms: float


class Report(BaseModel):
    """accelerator: the GPU's name, none on a CPU; contended: the machine was busy before the start; threads: of CPU
    engines, 0 = all; absent: what was asked for and not measured -> why; operators: by case and batch."""

    command: str
    hardware: Hardware
    accelerator: str | None
    contended: bool
    threads: int
    pictures: str
    devices: dict[str, Device]
    rows: list[Row]
    parity: list[Parity]
    absent: dict[str, str]
    operators: dict[str, list[Share]]


def contended(hardware: Hardware) -> bool:
    return hardware.load > QUIET * hardware.cores


def save(report: Report, path: Path) -> None:
    """The JSON, and the Markdown beside it, each whole or not there."""
    write_json(path, report.model_dump())
    write_bytes(path.with_suffix(".md"), markdown(report).encode())


def line(row: Row) -> str:
    """One row on the terminal."""
    return (
        f"{row.engine:18} {row.variant:18} {row.precision:5} {row.nms:7} batch {row.batch:3}  p50 {row.p50_ms:9.2f} "
        f"ms  p99 {row.p99_ms:9.2f} ms  {row.pictures_s:8.1f}/s  floor {row.floor_ms:8.3f} ms  load {row.load:.1f}"
    )


def markdown(report: Report) -> str:
    """All of it, with what it was measured on."""
    machine = report.hardware
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    lines = [
        f"# Engines on {report.accelerator or machine.cpu}", "",
        f"`{report.command}`", "",
        f"Machine: {machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB"
        + (f", {report.accelerator}" if report.accelerator else "")
        + f"; Python {machine.python}; {packages}; {machine.date}; load average before: {machine.load:g}.",
    ]  # fmt: skip
    if report.contended:
        lines += [
            "",
            "**Contended**: other work ran on this machine, so times are too long and p99 means little. A CPU's rates "
            "were measured under the same load, so its floors are too high, and a time can even be below one.",
        ]
    lines += [
        "",
        f"Pictures: {report.pictures}. Times are of a whole batch, from pictures in host memory to boxes in host "
        f"memory; CPU threads: {report.threads or 'all'}.",
        "",
        "The floor is what the convolutions alone take at the device's peak: the larger of operations / rate and "
        "bytes / bandwidth. " + "; ".join(_described(name, device) for name, device in report.devices.items()) + ".",
        "",
        "| engine | variant | precision | NMS | size | batch | p50 ms | p99 ms | events p50 ms | pictures/s | floor ms "
        "| of floor | engine MiB | process MiB | GPU MiB | runs | load |",
        "|---|---|---|---|---|" + "---:|" * 12,
    ]  # fmt: skip
    lines += [_table_row(row) for row in report.rows]
    lines += [
        "", "## Parity", "",
        "Against float32 in PyTorch on the CPU with greedy NMS, on detections from score 0.2 on. INT8 and float16 "
        "round, and so differ; float32 should not.", "",
        "| engine, variant | pictures | compared | unmatched | box, pixels | score |", "|---|" + "---:|" * 5,
    ]  # fmt: skip
    lines += [
        f"| {one.name} | {one.pictures} | {one.compared} | {one.unmatched} | {one.box:g} | {one.score:g} |"
        for one in report.parity
    ]
    if report.operators:
        lines += ["", "## Where the time goes", ""]
        for name, shares in report.operators.items():
            parts = ", ".join(f"{one.operator} {one.share:.0%} ({one.ms:.2f} ms)" for one in shares)
            lines.append(f"- {name}: {parts}")
    if report.absent:
        lines += ["", "## Not measured", "", *(f"- {name}: {reason}" for name, reason in report.absent.items())]
    return "\n".join(lines) + "\n"


def _described(name: str, device: Device) -> str:
    rates = ", ".join(f"{precision} {rate:.3g} T/s" for precision, rate in device.tflops.items())
    return f"{name} ({device.name}): {rates}, {device.gb_per_s:.4g} GB/s ({device.source})"


def _table_row(row: Row) -> str:
    cells = (
        row.engine, row.variant, row.precision, row.nms, f"{row.height}x{row.width}", row.batch, f"{row.p50_ms:.2f}",
        f"{row.p99_ms:.2f}", "-" if row.device_p50_ms is None else f"{row.device_p50_ms:.2f}", f"{row.pictures_s:.1f}",
        f"{row.floor_ms:.3f}", f"{row.p50_ms / row.floor_ms:.1f}x" if row.floor_ms else "-", f"{row.engine_mib:.0f}",
        f"{row.process_mib:.0f}", "-" if row.gpu_mib is None else f"{row.gpu_mib:.0f}", row.runs, f"{row.load:g}",
    )  # fmt: skip
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
