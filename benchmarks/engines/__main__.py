"""`python -m benchmarks.engines`: parity, latency by batch, throughput, memory and the floor, engine by engine.

What cannot be measured here is listed with the reason. The file is written after every row, so that an interrupted run
keeps what it has.
"""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.engines.cases import ENGINES, Absent, Case, cases_of, members_of, reference_of
from benchmarks.engines.floor import Device, Work, known_card, measured_cpu, overridden, work_of
from benchmarks.engines.measure import Pixels, compare, pictures, row_of
from benchmarks.engines.report import Report, contended, line, save
from benchmarks.hardware import cpu_model, describe
from service.engines.base import Detections, EngineError
from service.repository.manifest import InputSize
from service.repository.store import RepositoryError, load_repository
from training.commands import EngineThreads, stop_on_sigterm, told, whole_numbers
from training.files import check_writable

DATA = Path("../shared/data/faces")


@dataclass(frozen=True)
class Plan:
    """What to measure, and how long. trace: folder for profiles, None goes without."""

    repository: Path
    members: tuple[str, ...]
    engines: tuple[str, ...]
    batches: tuple[int, ...]
    threads: int
    seconds: float
    trace: Path | None
    out: Path


def run(plan: Plan, report: Report, canvases: Sequence[Pixels], say: Callable[[str], None]) -> None:
    """Measure every case and fill the report, which is saved after each row.

    Raises `RepositoryError`, and ValueError where a member asked for is not there.
    """
    repository = load_repository(plan.repository, untrained=False)
    height, width = canvases[0].shape[:2]
    torch.set_num_threads(plan.threads or torch.get_num_threads())
    with tempfile.TemporaryDirectory(prefix="asfd-bench-") as scratch:
        members = members_of(repository, Path(scratch))
        if strangers := set(plan.members) - {member.name for member in members}:
            raise ValueError(f"{plan.repository} holds no member {', '.join(sorted(strangers))}")
        for member in members:
            if plan.members and member.name not in plan.members:
                continue
            work = work_of(member.detector, height, width)
            engine = reference_of(member)
            say(f"{member.name}: {work.operations / 1e9:.1f} GFLOP a picture; running the reference")
            reference = [engine.run(canvas[None])[0] for canvas in canvases]
            for case in cases_of(member, plan.engines, plan.threads):
                if isinstance(case, Absent):
                    report.absent[case.name] = case.reason
                    say(f"{case.name}: not measured: {case.reason}")
                else:
                    _measure(case, plan, report, canvases, reference, work, say)
                save(report, plan.out)


def _measure(
    case: Case, plan: Plan, report: Report, canvases: Sequence[Pixels], reference: Sequence[Detections], work: Work,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """One case at every batch size. What fails is named in the report, and the others go on."""
    from benchmarks.engines.trace import trace

    batch = 0
    try:
        engine = case.open()
        try:
            report.parity.append(compare(case.name, engine, canvases, reference))
            for batch in plan.batches:
                row = row_of(case, engine, canvases, batch, plan.seconds, work, report.devices[case.device])
                report.rows.append(row)
                save(report, plan.out)
                say(line(row))
                if plan.trace is not None:
                    stack = np.stack([canvases[at % len(canvases)] for at in range(batch)])
                    if shares := trace(case, engine, stack, plan.trace, plan.threads):
                        report.operators[f"{case.name}, batch {batch}"] = shares
        finally:
            engine.close()
    except EngineError as error:
        name = f"{case.name}, batch {batch}" if batch else case.name
        report.absent[name] = str(error)
        say(f"{name}: not measured: {error}")


def devices(tflops: float | None, gb_per_s: float | None, threads: int) -> tuple[dict[str, Device], str | None]:
    """`cpu`, measured, and `cuda` where there is a GPU, and its name. The figures given are the GPU's where there is
    one, else the CPU's. Raises ValueError for a GPU that is not in the table without figures for it."""
    from service.engines import cuda

    cpu = measured_cpu(cpu_model(), threads)
    try:
        name = cuda.device().name
    except EngineError:
        return {"cpu": overridden(cpu, tflops, gb_per_s)}, None
    card = known_card(name)
    if card is None and (tflops is None or gb_per_s is None):
        raise ValueError(
            f"{name} is not in the table of known cards: give --peak-tflops and --bandwidth-gbs from its data sheet"
        )
    card = card or Device(name=name, tflops={}, gb_per_s=1.0, source="not in the table")
    return {"cpu": cpu, "cuda": overridden(card, tflops, gb_per_s)}, name


def slug(name: str) -> str:
    """A name as part of a file's: `NVIDIA H200` becomes `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def parse_size(text: str) -> InputSize:
    """`480x640` (height, width). Raises ValueError."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or any(int(part) % 32 or not 192 <= int(part) <= 4096 for part in match.groups()):
        raise ValueError(f"--size is height x width, multiples of 32 from 192 on, such as 480x640, not {text!r}")
    return InputSize(height=int(match[1]), width=int(match[2]))


def main(
    repository: Annotated[Path, typer.Option(help="Model repository.")] = Path("models"),
    members: Annotated[str, typer.Option(help="Only these members, with commas between.")] = "",
    engines: Annotated[str, typer.Option(help=f"Of {', '.join(ENGINES)}.")] = ",".join(ENGINES),
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1,2,4,8,16",
    size: Annotated[str, typer.Option(help="Input size, height x width.")] = "480x640",
    seconds: Annotated[float, typer.Option(min=0.0, help="Seconds for each row; five runs at least.")] = 5.0,
    threads: EngineThreads = 0,
    data: Annotated[
        Path | None, typer.Option(help=f"Photos in WIDER Face's layout. [default: {DATA}, or the astronaut]")
    ] = None,
    count: Annotated[int, typer.Option("--pictures", min=2, help="Pictures that parity is measured on.")] = 16,
    peak_tflops: Annotated[float | None, typer.Option(min=0.001, help="Peak rate, for the floor.")] = None,
    bandwidth_gbs: Annotated[float | None, typer.Option(min=0.001, help="GB/s of memory, for the floor.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Folder for profiles: where the time goes.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON; a table (.md) beside it. [default: benchmarks/results/engines-GPU.json]")
    ] = None,
) -> None:
    """Measure every engine that can be used here, and say of the others why not."""
    stop_on_sigterm()
    with told(lambda: f"stopped; the rows measured so far are in {path}" if path else "stopped"):
        path: Path | None = None
        names = tuple(dict.fromkeys(part.strip() for part in engines.split(",") if part.strip()))
        if strangers := [name for name in names if name not in ENGINES]:
            raise ValueError(f"--engines: there is no {', '.join(strangers)}; there are {', '.join(ENGINES)}")
        sizes = whole_numbers("--batches", batches)
        if not sizes or min(sizes) < 1:
            raise ValueError("--batches starts at 1")
        folder = data or (DATA if DATA.is_dir() else None)
        canvases, words = pictures(folder, parse_size(size), count)
        hardware = describe()  # before anything heavy, so that the load is that of others
        rates, accelerator = devices(peak_tflops, bandwidth_gbs, threads)
        path = out or Path(f"benchmarks/results/engines-{slug(accelerator or 'cpu')}.json")
        check_writable(path)
        report = Report(
            command=shlex.join(["python", "-m", "benchmarks.engines", *sys.argv[1:]]), hardware=hardware,
            accelerator=accelerator, contended=contended(hardware), threads=threads, pictures=words, devices=rates,
            rows=[], parity=[], absent={}, operators={},
        )  # fmt: skip
        chosen = tuple(part.strip() for part in members.split(",") if part.strip())
        try:
            run(Plan(repository, chosen, names, sizes, threads, seconds, trace, path), report, canvases, typer.echo)
        except RepositoryError as error:
            raise ValueError(str(error)) from None
        save(report, path)
        typer.echo(f"wrote {path} and {path.with_suffix('.md')}")


if __name__ == "__main__":
    typer.run(main)
