"""Several training runs beside each other, each a process of its own with its own folder and log."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

from training.commands import PARENT
from training.files import write_json

LOG, FINISHED = "train.log", "finished.json"
_STOPPED = (130, -signal.SIGTERM, -signal.SIGINT)  # by `told`, or before it could save anything
_POLL_SECONDS = 0.2
_TAIL_BYTES = 8192
# The bar of a run's steps: `120/7000 [00:30<10:00, 3.1step/s, ...`. Evaluations have bars of photos.
_STEPS = re.compile(r"(\d+)/(\d+) \[[\d:?]+<([\d:?]+), [^\]\r\n]*?(?:step/s|s/step)")


@dataclass(frozen=True)
class Job:
    """One run. options: of `python -m training train`, its --out included; out: the run's folder; program: which takes
    the options."""

    name: str
    out: Path
    options: tuple[str, ...]
    program: tuple[str, ...] = (sys.executable, "-m", "training", "train")


@dataclass
class Outcome:
    """What became of the jobs, by name. failed: with the reason. ended: why `run_jobs` came back."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    ended: Literal["all", "time", "interrupt"] = "all"


@dataclass
class _Run:
    """A process that has been started. offset: where its part of the log begins."""

    job: Job
    process: subprocess.Popen[bytes]
    offset: int


class _Interrupts:
    """Counts SIGINT and SIGTERM (and SIGHUP, unless nohup has it ignored) instead of letting them raise anywhere."""

    count = 0

    def heard(self, _signal: int, _frame: FrameType | None) -> None:
        self.count += 1


def run_jobs(
    jobs: Sequence[Job],
    parallel: int,
    seconds: float | None,
    tell: Callable[[str], None],
    seen: Callable[[Job], None] = lambda _job: None,
    every: float = 30.0,
) -> Outcome:
    """Run jobs in their order, at most `parallel` at once, until all have ended, or `seconds` are over.

    A signal, or the end of the time, is passed on as SIGTERM, upon which each run saves and stops; a second signal
    kills them, saved or not. A job that fails does not end the others, and is not started again. A job that an earlier
    call has finished with the same options is not run again.
    tell: gets a line of status `every` so many seconds, and lines about what begins and ends; seen: called for each
    running job that often, and when it has ended.
    """
    began = told = time.monotonic()
    outcome, running = Outcome(), list[_Run]()
    queue = [job for job in jobs if not _finished(job)]
    for job in jobs:
        if job not in queue:
            outcome.done.append(job.name)
            tell(f"{job.name}: finished before, with the same options")
    with _interrupts() as interrupts:
        while running or (queue and outcome.ended == "all"):
            over = seconds is not None and time.monotonic() - began >= seconds
            if outcome.ended == "all" and (interrupts.count or over):
                outcome.ended = "interrupt" if interrupts.count else "time"
                tell(f"{'stopped' if interrupts.count else 'time is over'}: every run saves its state")
                for run in running:
                    run.process.terminate()
            elif outcome.ended != "all" and interrupts.count > (outcome.ended == "interrupt"):
                for run in running:
                    run.process.kill()
            while queue and len(running) < parallel and outcome.ended == "all":
                job = queue.pop(0)
                running.append(_start(job))
                tell(f"{job.name}: started, {job.out / LOG}")
            for run in [run for run in running if run.process.poll() is not None]:
                running.remove(run)
                tell(_end(run, outcome))
                seen(run.job)
            if running and time.monotonic() - told >= every:
                told = time.monotonic()
                tell(_status(running, queue, outcome, told - began))
                for run in running:
                    seen(run.job)
            if running:
                time.sleep(_POLL_SECONDS)
    outcome.waiting = [job.name for job in queue]
    return outcome


def progress(folder: Path, offset: int = 0) -> str:
    """How far a run is, in words, from its log (read from byte `offset`) and its evaluations."""
    bars = _STEPS.findall(_tail(folder / LOG, offset))
    words = f"{bars[-1][0]}/{bars[-1][1]} steps, {bars[-1][2]} left" if bars else "starting"
    try:
        last = json.loads((folder / "dev.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        return f"{words}, AP.50 {last['ap50']:.4f} at step {last['step']}"
    except (OSError, ValueError, LookupError):
        return words


def last_line(log: Path, offset: int = 0) -> str:
    """The last line of a log that says anything, read from byte `offset`; a bar's states are lines too."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", _tail(log, offset))]
    return next((line for line in reversed(lines) if line), "nothing in its log")


def _start(job: Job) -> _Run:
    job.out.mkdir(parents=True, exist_ok=True)
    with (job.out / LOG).open("ab") as log:
        log.write(f"$ {shlex.join((*job.program, *job.options))}\n".encode())
        log.flush()
        offset = log.tell()
        # A process group of its own: a terminal's Ctrl-C reaches this process alone, which passes it on once. And a
        # run that is told its parent ends with it, so that a restart does not find it still at work.
        process = subprocess.Popen(
            [*job.program, *job.options], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, "PYTHONUNBUFFERED": "1", PARENT: str(os.getpid())}, process_group=0,
        )  # fmt: skip
    return _Run(job, process, offset)


def _end(run: _Run, outcome: Outcome) -> str:
    """File an ended run under what became of it. -> a line about it."""
    name, code, log = run.job.name, run.process.returncode, run.job.out / LOG
    if code == 0:
        outcome.done.append(name)
        write_json(run.job.out / FINISHED, {"options": run.job.options})
        return f"{name}: {last_line(log, run.offset)}"
    if outcome.ended != "all" and code in _STOPPED:
        outcome.stopped.append(name)
        return f"{name}: stopped, {progress(run.job.out, run.offset)}"
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    outcome.failed[name] = f"{how}: {last_line(log, run.offset)}"
    return f"{name}: failed, {outcome.failed[name]}"


def _status(running: Sequence[_Run], queue: Sequence[Job], outcome: Outcome, seconds: float) -> str:
    parts = [f"{run.job.name} {progress(run.job.out, run.offset)}" for run in running]
    counts = {"waiting": len(queue), "done": len(outcome.done), "failed": len(outcome.failed)}
    parts += [f"{count} {word}" for word, count in counts.items() if count]
    return f"[{int(seconds) // 60}:{int(seconds) % 60:02d}] " + " | ".join(parts)


def _finished(job: Job) -> bool:
    try:
        stored = json.loads((job.out / FINISHED).read_text(encoding="utf-8"))
        return bool(stored["options"] == list(job.options)) and (job.out / "last.pt").is_file()
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _tail(path: Path, offset: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(offset, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


@contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    counter, former = _Interrupts(), {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            former[number] = signal.signal(number, counter.heard)
    try:
        yield counter
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
