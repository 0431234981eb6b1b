"""The accuracy benchmark as a picture: AP.50 against milliseconds a photo."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.accuracy import Row, Table


def draw(table: Table, path: Path) -> None:
    """Write a PNG: a line a detector over its long sides, ours in colour, every line named where it begins, and the
    front: what no other point beats in both accuracy and time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    lines: dict[tuple[str, bool], list[Row]] = defaultdict(list)
    for row in table.rows:
        lines[row.detector, row.ours].append(row)
    figure, axes = pyplot.subplots(figsize=(8.5, 5.2), dpi=150)
    colours = iter(("#0b6e4f", "#2f9e73", "#7bc8a4", "#145a86", "#3f8fc4"))
    for (name, ours), rows in lines.items():
        rows = sorted(rows, key=lambda one: one.long_side)
        colour = next(colours, "#0b6e4f") if ours else "#777777"
        times, accuracies = [row.ms_median for row in rows], [row.ap50 for row in rows]
        weight = 2.2 if ours else 1.0
        axes.plot(times, accuracies, marker="o", markersize=7 if ours else 5, color=colour, linewidth=weight)
        for row in rows if ours and len(rows) > 1 else ():
            place = (row.ms_median, row.ap50)
            axes.annotate(
                str(row.long_side), place, (0, -12), textcoords="offset points", fontsize=7, color=colour, ha="center"
            )
        # Lines are named where they begin: at their ends, the largest inputs, they meet.
        axes.annotate(
            name, (times[0], accuracies[0]), (-7, 4) if len(rows) > 1 else (7, -3), textcoords="offset points",
            fontsize=9, color=colour, fontweight="bold" if ours else "normal", ha="right" if len(rows) > 1 else "left",
        )  # fmt: skip
    best = front(table.rows)
    axes.plot(
        [row.ms_median for row in best], [row.ap50 for row in best], drawstyle="steps-post", linestyle=":",
        color="#c2452d", linewidth=1.2, zorder=0, label="front",
    )  # fmt: skip
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    ticks = [tick for tick in (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if _spans(table, tick)]
    axes.set_xticks(ticks)
    axes.margins(x=0.16, y=0.08)
    axes.set_xlabel(
        f"milliseconds a photo, {table.threads} CPU thread{'s' if table.threads > 1 else ''} (median, log scale)"
    )
    axes.set_ylabel(f"AP.50 on {table.data} {table.split}")
    sides = sorted({row.long_side for row in table.rows})
    axes.set_title(f"{table.photos} photos, long side {', '.join(map(str, sides))}; {table.hardware.cpu}", fontsize=9)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.png")
    figure.savefig(partial)
    partial.replace(path)
    pyplot.close(figure)


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no faster row equals or beats in AP.50, fastest first."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda one: (one.ms_median, -one.ap50)):
        if not kept or row.ap50 > kept[-1].ap50:
            kept.append(row)
    return kept


def _spans(table: Table, tick: float) -> bool:
    times = [row.ms_median for row in table.rows]
    return min(times) / 2 <= tick <= max(times) * 2
