"""At which sizes a picture is shown to a detector. AP by one protocol says nothing of AP by another, so every report
names its own, and one report has one."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from training.evaluation.detections import Source
from training.evaluation.multiscale import FACTORS, MultiPassSource, passes_of
from training.evaluation.sources import open_sources

DEFAULT_LONG_SIDE = 640
PROTOCOL_HELP = (
    "vga: one pass at --long-side; original: one pass at the photo's own size; multiscale: 0.5, 1, 1.5 and 2 of it, "
    "with box voting (paper, section 5.4). Never compare one with another."
)
FLIP_HELP = "One more pass, mirrored, joined by box voting."


class InputProtocol(StrEnum):
    """vga: one pass, resized to one long side (640 is VGA); original: one pass at the picture's own size; multiscale:
    passes at `FACTORS` of it, joined by box voting (paper, section 5.4, whose Table 7 has these APs)."""

    VGA = "vga"
    ORIGINAL = "original"
    MULTISCALE = "multiscale"


def open_by_protocol(
    where: Path | str,
    protocol: InputProtocol,
    long_sides: Sequence[int] | None = None,
    *,
    flip: bool = False,
    threads: int = 0,
    device: str | None = None,
) -> list[Source]:
    """Every detector behind `where` (see `open_sources`), long side by long side, as the protocol shows it pictures.

    long_sides: for `vga` alone, 640 by default. Raises what `open_sources` does, and ValueError where long sides come
    with a protocol that has none.
    """
    if protocol is not InputProtocol.VGA and long_sides:
        raise ValueError(f"--long-side goes with --protocol vga; {protocol} starts from the photo's own size")
    sides: list[int | None] = [None]
    if protocol is InputProtocol.VGA:
        sides = list(long_sides or [DEFAULT_LONG_SIDE])
    if any(side is not None and side < 1 for side in sides):
        raise ValueError("--long-side must be at least one pixel")
    sources = [source for side in sides for source in open_sources(where, side, threads, device)]
    factors = FACTORS if protocol is InputProtocol.MULTISCALE else (1.0,)
    passes = passes_of(factors, flip)
    return list(sources) if len(passes) == 1 else [MultiPassSource(source, passes) for source in sources]


def label(protocol: InputProtocol, flip: bool) -> str:
    """For a report's head, such as `multiscale + flip`."""
    return f"{protocol} + flip" if flip else str(protocol)
