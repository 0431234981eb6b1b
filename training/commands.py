"""How commands end: with a sentence and an exit status, never with a traceback for what a user can mend; and what keeps
two of them out of one folder."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

PARENT = "ASFD_PARENT"  # in a run's environment: the id of the process that it must not outlive
LOCK = "run.lock"
MAX_THREADS = 1024  # beyond any machine; libraries start as many as they are told, and hang over a hundred thousand
_PR_SET_PDEATHSIG = 1

EngineThreads = Annotated[int, typer.Option(min=0, max=MAX_THREADS, help="CPU threads; 0 takes all cores.")]
TorchThreads = Annotated[
    int, typer.Option(min=0, max=MAX_THREADS, help="CPU threads of the network; 0 leaves torch's default.")
]
Workers = Annotated[int, typer.Option(min=0, max=MAX_THREADS, help="Loader processes.")]


@contextmanager
def told(stopped: Callable[[], str]) -> Iterator[None]:
    """Turn OSError and ValueError into `error: ...` and exit status 2, an interrupt into `stopped()` and 130."""
    try:
        yield
    except (OSError, ValueError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo(stopped(), err=True)
        raise typer.Exit(130) from None


def stop_on_sigterm() -> None:
    """Make SIGTERM, which schedulers and containers send, an interrupt as Ctrl-C is."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def end_with_parent() -> None:
    """Have Linux send this process SIGTERM when its parent ends, be it by SIGKILL, if the environment names the parent
    in `PARENT`. Does nothing elsewhere."""
    parent = os.environ.pop(PARENT, "")
    if not parent or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) != parent:  # it ended before the line above
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other processes that ask for it out until the block, or this process, has ended.

    Raises ValueError where another one has it, and OSError where it cannot be made. The lock's file stays: were it
    removed, a process that had opened it before and one that made it anew could both have the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as file:
        # A loader process that outlives a killed run for some seconds must not keep its folder.
        os.register_at_fork(after_in_child=file.close)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process trains in {folder}; wait until it has ended, stop it, or name another --out"
            ) from None
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the block has ended, then raise KeyboardInterrupt.

    For what must not be done by halves, such as a training step, of which the state is saved right after.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    earlier = [signal.signal(one, lambda number, _frame: asked.append(number)) for one in signals]
    try:
        yield
    finally:
        for one, handler in zip(signals, earlier, strict=True):
            signal.signal(one, handler)
    if asked:
        raise KeyboardInterrupt


def validation_split(data: Path) -> str:
    """The split of `data` to evaluate on where none is named: `dev`, or WIDER Face's `val` where there is no `dev`."""
    from training.data.layout import resolve_split

    for split in ("dev", "val"):
        try:
            resolve_split(data, split)
        except FileNotFoundError:
            continue
        return split
    return "dev"


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """`0,1,2` -> (0, 1, 2), each once. Raises ValueError that names the option."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{option} takes whole numbers with commas between, such as 0,1,2, not {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))
