"""Files that are whole or not there: written beside the target, then renamed."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that an interrupted run leaves the former one or the new one. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """`write_bytes` of indented JSON."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def check_writable(file: Path | None) -> None:
    """Look before minutes of measuring are spent: raises ValueError where the file, if one is asked for, could not be
    written. Neither it nor its folders are made."""
    if file is None:
        return
    if file.is_dir():
        raise ValueError(f"{file} is a folder; name a file to write")
    folder = next(one for one in file.absolute().parents if one.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{file} cannot be written, since in {folder} no file can be made ({error.strerror}); name another place"
        ) from error
