"""What the commands share: options, messages for people, small parsers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from service.engines.base import EngineError
from service.repository.manifest import MANIFEST_NAME, Manifest
from service.repository.store import RepositoryError, load_manifest
from training.commands import told

Repo = Annotated[Path, typer.Option("--repository", help="Folder of the model repository.")]
Data = Annotated[Path, typer.Option(help="Photos in WIDER Face's layout.")]
Member = Annotated[str, typer.Argument(help="A member's name, such as d0.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes all cores.")]
LONG_SIDES = "256,320,480,640,960"  # those of `export.member`, which loads onnx: too slow for --help
AGAIN = "stopped; what is finished stays"


@contextmanager
def reported(stopped: str = AGAIN) -> Iterator[None]:
    """`training.commands.told`, for the errors of repositories and engines as well."""
    with told(lambda: stopped):
        try:
            yield
        except (RepositoryError, EngineError) as error:
            raise ValueError(str(error)) from None


def fail(message: object) -> typer.Exit:
    """Print an error; the exit with status 2 is to be raised."""
    typer.secho(f"error: {message}", fg="red", err=True)
    return typer.Exit(2)


def manifest_of(repository: Path, member: str) -> Manifest:
    """Raises `RepositoryError`."""
    return load_manifest(repository / member / MANIFEST_NAME)


def numbers(option: str, text: str) -> tuple[int, ...]:
    """`320,640` -> (320, 640). Raises ValueError that names the option."""
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise ValueError(f"{option} takes numbers with commas between, such as 320,640, not {text!r}")
    return found
