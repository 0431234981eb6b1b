"""How commands end: with a sentence and an exit status, never with a traceback for what a user can mend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
