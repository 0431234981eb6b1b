"""How commands end: with a sentence and an exit status, never with a traceback for what a user can mend."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import typer


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


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """`0,1,2` -> (0, 1, 2), each once. Raises ValueError that names the option."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{option} takes whole numbers with commas between, such as 0,1,2, not {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))
