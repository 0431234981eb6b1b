"""Profiles as `python -m export profile` writes them, of times that nobody measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from service.simulation.profile import PROFILE_VERSION

# Name, AP.50 at 640, milliseconds at 480x640: the shape of a family, fast and poor to slow and good.
SEVEN = (
    ("f0", 0.58, 9.0), ("f1", 0.64, 15.0), ("f2", 0.69, 26.0), ("f3", 0.735, 45.0), ("f4", 0.77, 80.0),
    ("f5", 0.80, 140.0), ("f6", 0.82, 240.0),
)  # fmt: skip


def row(
    variant: str, height: int, width: int, batch: int, p50: float, p99: float, ap50: float | None
) -> dict[str, Any]:
    timing = {"p50_ms": p50, "p99_ms": p99, "runs": 20}
    return {"variant": variant, "height": height, "width": width, "batch": batch, **timing, "ap50": ap50}


def seven_rows(batches: tuple[int, ...] = (1, 2, 4, 8)) -> list[dict[str, Any]]:
    """At two long sides; a batch of b takes 0.2 + 0.8 b times as long as one, and p99 is a quarter above p50."""
    rows = []
    for name, ap50, ms in SEVEN:
        for side in (320, 640):
            short = -(-side * 3 // 4 // 32) * 32  # as `export` has it
            for height, width in ((short, side), (side, short), (side, side)):
                one = ms * height * width / (480 * 640)
                worth = round(ap50 - (0.12 if side == 320 else 0.0), 3)
                for batch in batches:
                    p50 = round(one * (0.2 + 0.8 * batch), 2)
                    rows.append(row(name, height, width, batch, p50, round(p50 * 1.25, 2), worth))
    return rows


def write_profile(path: Path, rows: list[dict[str, Any]]) -> Path:
    content = {"version": PROFILE_VERSION, "hardware": "a drawn machine", "date": "2026-01-01", "rows": rows}
    path.write_text(json.dumps(content))
    return path
