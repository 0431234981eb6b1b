"""`python -m benchmarks.training`: how fast D0 trains on this machine, and where the time of a step goes.

Each case runs in processes of its own (`benchmarks.training_case`) with the training loop's own step and data path.
Finished cases are kept after each; cases of earlier runs stay where machine, packages and data are the same.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Annotated

import torch
import typer
from pydantic import BaseModel, ValidationError

from benchmarks.hardware import Hardware, describe
from benchmarks.server import free_port
from benchmarks.training_case import MEMBER, Case, Speed, Task
from training.commands import told
from training.data.dataset import load_training_set
from training.files import write_json
from training.recipes import RECIPES

COLUMNS = ("pictures/s", "MP/s", "waiting", "data alone/s", "load")
START = 600  # seconds that a case may take to start, compilation included
HEADER = f"{'case':16} {'side':>5} {'batch':>6} " + " ".join(f"{name:>12}" for name in COLUMNS)


class Report(BaseModel):
    """accelerator: the GPU's name, none on a CPU; failed: cases that ended with an error, and the error."""

    hardware: Hardware
    accelerator: str | None
    member: str
    recipe: str
    data: str
    photos: int
    cases: list[Speed]
    failed: dict[str, str]

    def identity(self) -> tuple[object, ...]:
        """What must be the same for cases of two runs to stand side by side."""
        machine = self.hardware.cpu, self.hardware.cores, self.hardware.packages, self.accelerator
        return *machine, self.member, self.recipe, self.data, self.photos


class CaseError(Exception):
    """A case that did not end with a result. The message is a sentence."""


def cases_for(device: str, sides: list[int], batches: list[int]) -> list[Case]:
    """Every case of a device, in the order in which they run."""
    return [case for side in sides for batch in batches for case in (_gpu if device == "cuda" else _cpu)(side, batch)]


def _cpu(side: int, batch: int) -> list[Case]:
    """decode, cached: the data path; 1x2: processes x threads of each."""
    return [
        Case(name="decode-1x1", side=side, batch=batch, data="decode"),
        Case(name="cached-1x1", side=side, batch=batch),
        Case(name="cached-1x2", side=side, batch=batch, threads=2),
        Case(name="cached-2x1", side=side, batch=batch, processes=2),
        Case(name="compiled-1x1", side=side, batch=batch, compile=True, chosen=False),
        Case(name="device-1x1", side=side, batch=batch, data="device", chosen=False),
    ]


def _gpu(side: int, batch: int) -> list[Case]:
    workers = max(1, min(16, len(os.sched_getaffinity(0)) - 1))
    return [
        Case(name="loader", side=side, batch=batch, threads=0, workers=workers),
        Case(name="device", side=side, batch=batch, threads=0, data="device"),
        Case(name="device-compiled", side=side, batch=batch, threads=0, data="device", compile=True),
        Case(name="device-fp32", side=side, batch=batch, threads=0, data="device", precision="fp32", chosen=False),
    ]


def run_case(task: Task) -> Speed:
    """Run one case to its end. Raises CaseError where it has no result."""
    patience = 20 * task.seconds + START
    with tempfile.TemporaryDirectory(prefix="asfd-bench-") as folder:
        task_file, result = Path(folder) / "task.json", Path(folder) / "result.json"
        task_file.write_text(task.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m"]
        if task.case.processes > 1:
            launcher = ["torch.distributed.run", "--nproc-per-node", str(task.case.processes)]
            command += [*launcher, "--master-port", str(free_port()), "-m"]
        settings = {"KINETO_LOG_LEVEL": "99"}  # the profiler's notes are no part of the progress
        if task.case.threads:
            settings["OMP_NUM_THREADS"] = str(task.case.threads)
        process = subprocess.Popen(
            [*command, "benchmarks.training_case", str(task_file), str(result)],
            env={**os.environ, **settings},
            start_new_session=True,
        )
        try:
            process.wait(patience)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise CaseError(f"it had not ended after {patience / 60:.0f} minutes") from None
            raise
        content = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    if "error" in content:
        raise CaseError(content["error"])
    if process.returncode or not content:
        reason = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
        raise CaseError(f"its process ended with {reason} and no result")
    return Speed.model_validate(content)


def table_row(speed: Speed) -> str:
    """One line under `HEADER`."""
    case = speed.case
    cells = (
        f"{speed.pictures_s:.1f}", f"{speed.megapixels_s:.2f}", f"{speed.waiting:.1%}", f"{speed.data_pictures_s:.0f}",
        f"{speed.load:.2f}",
    )  # fmt: skip
    return f"{case.name:16} {case.side:5} {case.batch:6} " + " ".join(f"{cell:>12}" for cell in cells)


def step_line(speed: Speed) -> str:
    """Where the time of a step goes, in one line."""
    return "  " + ", ".join(f"{part.name} {part.ms:.0f} ms ({part.share:.0%})" for part in speed.parts)


def chosen(cases: list[Case], names: str) -> list[Case]:
    """The cases named, or all that need no naming. Raises ValueError for a name that no case has."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = list(dict.fromkeys(case.name for case in cases))
    for name in wanted:
        if name not in known:
            raise ValueError(f"no case {name!r}; there are {', '.join(known)}")
    return [case for case in cases if (case.name in wanted if wanted else case.chosen)]


def numbers(text: str, least: int, what: str) -> list[int]:
    """A list such as 256,416. Raises ValueError that says what is wrong."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise ValueError(f"{what} must be whole numbers of at least {least} such as 256,416, not {text!r}")
    return [int(part) for part in parts]


def resume(path: Path, fresh: Report) -> Report:
    """The report at `path` where it was made on the same machine and data, with today's date; else the fresh one."""
    try:
        before = Report.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return fresh
    if before.identity() != fresh.identity():
        return fresh
    return before.model_copy(update={"hardware": fresh.hardware, "failed": {}})


def add(report: Report, speed: Speed) -> None:
    """Put a case in, in place of its former measurement."""
    report.cases = [one for one in report.cases if one.case.key != speed.case.key] + [speed]


def main(
    data: Annotated[Path, typer.Option(help="Folder in WIDER Face's layout.")] = Path("../shared/data/faces"),
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe; default: scratch on a GPU, else scratch-cpu.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of training for each case.")] = 20.0,
    sides: Annotated[str | None, typer.Option(help="Crop sides; default: 640 on a GPU, else 256.")] = None,
    batch: Annotated[str | None, typer.Option(help="Batches a process; default: 32,64,128 on a GPU, else 16.")] = None,
    cases: Annotated[str, typer.Option(help="Names of cases, such as cached-1x1,cached-2x1; default: most.")] = "",
    cache: Annotated[Path, typer.Option(help="Folder for decoded pictures.")] = Path(".cache/pictures"),
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    out: Annotated[
        Path | None, typer.Option(help="JSON file; default: benchmarks/results/training-DEVICE.json.")
    ] = None,
) -> None:
    """Measure training: pictures a second, waits for data, the parts of a step, its operators."""
    signal.signal(signal.SIGTERM, _stop)
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    finished = 0
    with told(lambda: f"stopped; {finished} finished cases are kept" + (f" in {path}" if finished else "")):
        if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
            raise ValueError(f"there is no device {kind!r} here; cpu is always there, cuda where torch finds a GPU")
        recipe = recipe or ("scratch" if kind == "cuda" else "scratch-cpu")
        if recipe not in RECIPES:
            raise ValueError(f"no recipe {recipe!r}; there are {', '.join(RECIPES)}")
        side_list = numbers(sides or ("640" if kind == "cuda" else "256"), 32, "sides")
        batch_list = numbers(batch or ("32,64,128" if kind == "cuda" else "16"), 1, "batch")
        todo = chosen(cases_for(kind, side_list, batch_list), cases)
        accelerator = torch.cuda.get_device_name() if kind == "cuda" else None
        path = out or Path(f"benchmarks/results/training-{slug(accelerator or 'cpu')}.json")
        # Decodes the pictures where that was not done yet, before anything is timed.
        photos = len(load_training_set(data, split, cache, RECIPES[recipe]().data))
        report = resume(
            path,
            Report(
                hardware=describe(), accelerator=accelerator, member=MEMBER, recipe=recipe,
                data=data.resolve().name, photos=photos, cases=[], failed={},
            ),
        )  # fmt: skip
        typer.echo(f"{MEMBER}, {recipe}, {photos} photos, {accelerator or report.hardware.cpu}: {len(todo)} cases")
        typer.echo(HEADER)
        for case in todo:
            task = Task(case=case, data=data, split=split, cache=cache, recipe=recipe, device=kind, seconds=seconds)
            try:
                speed = run_case(task)
            except CaseError as error:
                report.failed[f"{case.name} side {case.side} batch {case.batch}"] = str(error)
                typer.secho(f"{case.name:16} {case.side:5} {case.batch:6}  failed: {error}", fg="red", err=True)
            else:
                add(report, speed)
                finished += 1
                typer.echo(table_row(speed))
                typer.echo(step_line(speed))
            write_json(path, report.model_dump())
        typer.echo(f"wrote {path}")
    if report.failed:
        raise typer.Exit(1)


def slug(name: str) -> str:
    """A name as part of a file's: `NVIDIA H200` becomes `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    typer.run(main)
