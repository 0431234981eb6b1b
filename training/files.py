"""Files that are whole or not there: written beside the target, then renamed."""

from __future__ import annotations

import json
import os
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
