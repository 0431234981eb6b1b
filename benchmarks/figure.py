"""The accuracy benchmark as a picture: AP.50 against milliseconds a photo, as `python -m training figure front` has
it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training.figures.front import Results, front, front_png
from training.files import write_bytes

if TYPE_CHECKING:
    from benchmarks.accuracy import Table

__all__ = ["draw", "front"]


def draw(table: Table, path: Path) -> None:
    """Write a PNG of one run. Raises ValueError where matplotlib is not installed."""
    write_bytes(path, front_png([Results.model_validate(table.model_dump())]))
