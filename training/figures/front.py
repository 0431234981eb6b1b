"""Figure 1: average precision against latency, ours and other people's detectors, and what nothing faster equals.

Drawn from the JSON of `make bench-accuracy`, of which only the fields below are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, Field, FiniteFloat

from training.figures.drawing import DASHES, LINES, OURS, encode, new_figure, read_json, style
from training.figures.labels import Label, place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Metric = Literal["ap50", "ap"]
METRICS: dict[Metric, str] = {"ap50": "AP.50", "ap": "AP[.50:.95]"}
TICKS = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

_OTHERS = "#777777"
# What stays below that share of the lowest point of ours is named at the bottom edge: it would squeeze all the rest.
_FLOOR = 0.7


class Machine(BaseModel):
    cpu: str = "unknown"


class Point(BaseModel):
    """One detector at one long side. AP in 0..1; ms_median: milliseconds a photo."""

    detector: str
    ours: bool
    long_side: int
    ap50: float = Field(ge=0, le=1)
    ap: float = Field(ge=0, le=1)
    ms_median: FiniteFloat = Field(gt=0)


class Results(BaseModel):
    """One run of the accuracy benchmark."""

    data: str
    split: str
    photos: int
    threads: int
    hardware: Machine
    rows: list[Point] = Field(min_length=1)


class Measured(Protocol):
    """What `front` needs of a row."""

    @property
    def ap50(self) -> float: ...

    @property
    def ap(self) -> float: ...

    @property
    def ms_median(self) -> float: ...


Row = TypeVar("Row", bound=Measured)


def read_results(paths: Sequence[Path]) -> list[Results]:
    """Raises ValueError where the files were not measured on the same split: their AP cannot be compared."""
    results = [read_json(path, Results, "the JSON of `make bench-accuracy`") for path in paths]
    splits = {f"{one.data} {one.split}" for one in results}
    if len(splits) > 1:
        raise ValueError(f"AP of different photos cannot share a figure: {', '.join(sorted(splits))}")
    return results


def front(rows: Sequence[Row], metric: Metric = "ap50") -> list[Row]:
    """The rows that no faster row equals or beats in AP, fastest first."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda one: (one.ms_median, -value(one, metric))):
        if not kept or value(row, metric) > value(kept[-1], metric):
            kept.append(row)
    return kept


def value(row: Measured, metric: Metric) -> float:
    return row.ap50 if metric == "ap50" else row.ap


def front_numbers(results: Sequence[Results], metric: Metric) -> dict[str, Any]:
    """Every point, and whether it lies on the front of its run."""
    runs = []
    for one in results:
        best = front(one.rows, metric)
        rows = [row.model_dump() | {"on_front": any(row is other for other in best)} for row in one.rows]
        runs.append({**one.model_dump(exclude={"rows"}), "rows": rows})
    return {"metric": metric, "runs": runs}


def draw_front(results: Sequence[Results], metric: Metric) -> Figure:
    """A line a detector over its long sides, ours in colour and named with the long sides; a dotted front a run."""
    figure = new_figure(8.5, 5.4) if len(results) == 1 else new_figure(11, 7.4)
    axes = figure.add_subplot()
    every = [row for one in results for row in one.rows]
    floor = _floor(every, metric)
    colours = _colours(every)
    labels: list[Label] = []
    for number, one in enumerate(results):
        dashes = DASHES[number % len(DASHES)]
        suffix = f" [{number + 1}]" if len(results) > 1 else ""
        lines: dict[tuple[str, bool], list[Point]] = defaultdict(list)
        for row in one.rows:
            lines[row.detector, row.ours].append(row)
        for (name, ours), rows in lines.items():
            labels += _draw_line(axes, name + suffix, rows, metric, colours[name] if ours else _OTHERS, dashes, floor)
        best = front(one.rows, metric)
        axes.plot(
            [row.ms_median for row in best], [value(row, metric) for row in best], drawstyle="steps-post",
            linestyle=":", linewidth=1.4, color=LINES[(3 + number) % len(LINES)], zorder=0, label=f"front{suffix}",
        )  # fmt: skip
    _scale(axes, every, metric, floor)
    threads = sorted({one.threads for one in results})
    plural = "" if threads == [1] else "s"
    style(
        axes,
        f"milliseconds a photo, {' or '.join(map(str, threads))} CPU thread{plural} (median, log scale)",
        f"{METRICS[metric]} on {results[0].data} {results[0].split}",
        "\n".join(_title(one, f"[{number + 1}] " if len(results) > 1 else "") for number, one in enumerate(results)),
    )
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    place_labels(axes, labels)
    return figure


def front_png(results: Sequence[Results], metric: Metric = "ap50") -> bytes:
    """The figure as a PNG file."""
    return encode(draw_front(results, metric))


def _draw_line(
    axes: Axes, name: str, rows: list[Point], metric: Metric, colour: str, dashes: str, floor: float
) -> list[Label]:
    """Draw one detector and return the labels it wants, its name before its long sides."""
    rows = sorted(rows, key=lambda one: one.long_side)
    ours = rows[0].ours
    size, weight = (7, "bold") if ours else (5, "normal")
    shown = [row for row in rows if value(row, metric) >= floor]
    if not shown:  # all under the floor: an arrow at the bottom edge, with the best value
        best = max(rows, key=lambda one: value(one, metric))
        axes.plot(best.ms_median, floor, marker="v", markersize=size, color=colour, clip_on=False)
        return [Label(f"{name} ({value(best, metric):.2f})", best.ms_median, floor, colour, 9, weight, 0)]
    times, heights = [row.ms_median for row in shown], [value(row, metric) for row in shown]
    axes.plot(
        times, heights, marker="o", markersize=size, color=colour, linewidth=2.2 if ours else 1.0, linestyle=dashes
    )
    labels = [Label(name, times[0], heights[0], colour, 9, weight, 0)]
    if ours and len(shown) > 1:
        labels += [
            Label(str(row.long_side), row.ms_median, value(row, metric), colour, 7, "normal", 1) for row in shown
        ]
    return labels


def _colours(rows: Sequence[Point]) -> dict[str, str]:
    names = list(dict.fromkeys(row.detector for row in rows if row.ours))
    return {name: OURS[min(at, len(OURS) - 1)] for at, name in enumerate(names)}


def _floor(rows: Sequence[Point], metric: Metric) -> float:
    """The lowest AP that is drawn to scale."""
    ours = [value(row, metric) for row in rows if row.ours]
    limit = _FLOOR * min(ours or (value(row, metric) for row in rows))
    lowest = min(value(row, metric) for row in rows if value(row, metric) >= limit)
    highest = max(value(row, metric) for row in rows)
    outside = any(value(row, metric) < limit for row in rows)
    return lowest - 0.12 * max(highest - lowest, 0.02) if outside else lowest


def _scale(axes: Axes, rows: Sequence[Point], metric: Metric, floor: float) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    times = [row.ms_median for row in rows]
    axes.set_xscale("log")
    axes.set_xticks([tick for tick in TICKS if min(times) / 2 <= tick <= max(times) * 2])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.17, y=0.1)
    if any(value(row, metric) < floor for row in rows):
        axes.set_ylim(bottom=floor)


def _title(one: Results, before: str) -> str:
    sides = ", ".join(str(side) for side in sorted({row.long_side for row in one.rows}))
    return f"{before}{one.photos} photos, long side {sides}; {one.hardware.cpu}"
