"""Figure 2 (a): what every module of a table gains or loses against the table's first row, here and in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from training.figures.drawing import new_figure, read_json, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS_COLOUR, PAPER_COLOUR = "#145a86", "#d9822b"


class Paper(BaseModel):
    """What the paper prints for a row. ap50_hard: AP.50 on WIDER's hard subset, percent."""

    ap50_hard: float | None = None


class Ours(BaseModel):
    """What was measured for a row. ap50: in 0..1."""

    ap50: float = Field(ge=0, le=1)


class Row(BaseModel):
    """gain: of AP.50 over the first row, as a fraction, where the table's own command has paired
    the seeds that both rows have; without it the difference of the means is taken."""

    name: str
    paper: Paper | None = None
    ours: Ours | None = None
    gain: float | None = Field(default=None, ge=-1, le=1)


class Table(BaseModel):
    """One of the paper's tables; the first row is its baseline."""

    table: int | str
    rows: list[Row] = Field(min_length=2)


class Gain(BaseModel):
    """Differences of AP.50 to the first row, in points (hundredths); None where one of the two is not there."""

    name: str
    ours: float | None
    paper: float | None


class Gains(BaseModel):
    table: int | str
    baseline: str
    rows: list[Gain]


def read_gains(paths: Sequence[Path]) -> list[Gains]:
    """Raises ValueError where no row of a table can be compared with its first."""
    return [gains_of(read_json(path, Table, "the JSON of a table (`table` and `rows`)"), path) for path in paths]


def gains_of(table: Table, where: Path) -> Gains:
    base = table.rows[0]
    rows = [
        Gain(
            name=row.name,
            ours=_ours(row, base),
            paper=_difference(row.paper, base.paper),
        )
        for row in table.rows[1:]
    ]
    if all(row.ours is None and row.paper is None for row in rows):
        raise ValueError(f"{where}: no row can be compared with the first, {base.name!r}; is that one measured yet?")
    return Gains(table=table.table, baseline=base.name, rows=rows)


def _ours(row: Row, base: Row) -> float | None:
    if row.gain is not None:
        return 100 * row.gain
    return None if row.ours is None or base.ours is None else 100 * (row.ours.ap50 - base.ours.ap50)


def _difference(row: Paper | None, base: Paper | None) -> float | None:
    if row is None or base is None or row.ap50_hard is None or base.ap50_hard is None:
        return None
    return row.ap50_hard - base.ap50_hard


def gains_numbers(tables: Sequence[Gains]) -> dict[str, Any]:
    return {"unit": "points of AP.50", "tables": [one.model_dump() for one in tables]}


def draw_gains(tables: Sequence[Gains]) -> Figure:
    """A panel a table, a pair of bars a row, all on one scale."""
    bars = [len(one.rows) for one in tables]
    figure = new_figure(8.0, 1.1 * len(tables) + 0.42 * sum(bars))
    panels = figure.subplots(len(tables), 1, squeeze=False, sharex=True, height_ratios=[count + 0.6 for count in bars])
    for (axes,), one in zip(panels, tables, strict=True):
        _draw_panel(axes, one)
        style(axes, "", "", f"Table {one.table}: AP.50 against {one.baseline}")
    last = panels[-1][0]
    last.set_xlabel("difference of AP.50, points")
    ends = [0.0, *(gain for one in tables for row in one.rows for gain in (row.ours, row.paper) if gain is not None)]
    room = 0.12 * max(max(ends) - min(ends), 0.1)  # for the numbers at the bars' ends
    last.set_xlim(min(ends) - room, max(ends) + room)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw_panel(axes: Axes, table: Gains) -> None:
    for shift, colour, label, values in (
        (-0.19, OURS_COLOUR, "ours", [row.ours for row in table.rows]),
        (0.19, PAPER_COLOUR, "the paper, WIDER hard", [row.paper for row in table.rows]),
    ):
        shown = [(at, gain) for at, gain in enumerate(values) if gain is not None]
        drawn = axes.barh([at + shift for at, _ in shown], [gain for _, gain in shown], 0.36, color=colour, label=label)
        axes.bar_label(drawn, [f"{gain:+.1f}" for _, gain in shown], padding=3, fontsize=8)
    axes.axvline(0, color="#333333", linewidth=0.9)
    axes.set_yticks(range(len(table.rows)), [row.name for row in table.rows])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
