"""What the commands share: options, messages for people, small parsers."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from service.engines.base import EngineError
from service.repository.manifest import MANIFEST_NAME, Manifest, ModelFile
from service.repository.store import RepositoryError, load_manifest, verify_file
from training.commands import told

Repo = Annotated[Path, typer.Option("--repository", help="Folder of the model repository.")]
Data = Annotated[Path, typer.Option(help="Photos in WIDER Face's layout.")]
Member = Annotated[str, typer.Argument(help="A member's name, such as d0.")]
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


def known_sides(option: str, text: str, manifest: Manifest) -> tuple[int, ...]:
    """`numbers` that are long sides of the member's input sizes, before minutes are spent on others."""
    found, known = numbers(option, text), sorted({size.long_side for size in manifest.input_sizes})
    if strangers := ", ".join(str(side) for side in found if side not in known):
        listed = ", ".join(map(str, known))
        raise ValueError(f"{option}: {manifest.member} has no input of long side {strangers}; it has {listed}")
    return found


def whole(path: Path, file: ModelFile) -> Path:
    """`path`, once it is known to be the file that the manifest describes. Raises ValueError where it is not."""
    if fault := verify_file(path, file):
        raise ValueError(fault)
    return path


@contextmanager
def alone(repository: Path) -> Iterator[None]:
    """Keep other exports out of a repository, where there is one, until the block or this process has ended.

    Manifests are read, added to for minutes and written back: of two at once, one would lose what the other found.
    Raises ValueError where another one has it.
    """
    if not repository.is_dir():
        yield
        return
    folder = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise ValueError(f"another process exports into {repository}; wait until it has ended, or stop it") from None
    except OSError:
        pass  # some network file systems lock no folders
    try:
        yield
    finally:
        os.close(folder)
