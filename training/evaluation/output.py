"""Where results go, looked at before minutes of measuring are spent on them."""

from __future__ import annotations

import tempfile
from pathlib import Path


def check_writable(file: Path) -> None:
    """Raises ValueError where the file could not be written. Neither it nor its folders are made."""
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
