"""Figure 7, FDDB's side: true-positive rate against the number of false positives, discrete and continuous."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, model_validator

from training.evaluation.fddb import READ_AT
from training.figures.drawing import line_style, new_figure, read_json, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["discrete", "continuous"]
KINDS: tuple[Kind, Kind] = ("discrete", "continuous")


class Roc(BaseModel):
    """One detector. source: with long side and regions where the file tells them; false_positives: on all pictures,
    rising; discrete, continuous: true-positive rates at each, in 0..1."""

    source: str
    false_positives: list[Annotated[FiniteFloat, Field(ge=0)]] = Field(min_length=1)
    discrete: list[float]
    continuous: list[float]

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, row: Any) -> Any:
        """Take the curve out of a row as `evaluate-fddb` writes it; a row with plain lists stays as it is."""
        if not isinstance(row, dict) or not isinstance(row.get("curve"), dict):
            return row
        side = f" at {row['long_side']}" if row.get("long_side") else ""
        regions = f", {row['regions']}" if row.get("regions") else ""
        curve = dict(row["curve"])
        return {"source": f"{row.get('source')}{side}{regions}", "false_positives": curve.pop("fp", []), **curve}

    @model_validator(mode="after")
    def _whole(self) -> Roc:
        lengths = {len(self.false_positives), len(self.discrete), len(self.continuous)}
        if len(lengths) > 1:
            raise ValueError("false_positives, discrete and continuous must be of one length")
        if any(later < one for one, later in zip(self.false_positives, self.false_positives[1:], strict=False)):
            raise ValueError("false_positives must not fall")
        if not all(0 <= rate <= 1 for rate in (*self.discrete, *self.continuous)):
            raise ValueError("rates must lie in 0..1")
        return self

    def rates(self, kind: Kind) -> list[float]:
        return self.discrete if kind == "discrete" else self.continuous


class RocFile(BaseModel):
    rows: list[Roc] = Field(min_length=1)


def read_rocs(paths: Sequence[Path]) -> list[Roc]:
    """All curves of all files, in order. A name that several files use gets its file's name after it."""
    files = [read_json(path, RocFile, "an FDDB evaluation (`rows` with false_positives, discrete, continuous)").rows
             for path in paths]  # fmt: skip
    names = [row.source for rows in files for row in rows]
    return [
        row.model_copy(update={"source": f"{row.source} ({path.stem})"}) if names.count(row.source) > 1 else row
        for path, rows in zip(paths, files, strict=True)
        for row in rows
    ]


def rate_at(row: Roc, kind: Kind, false_positives: float) -> float:
    """The rate at the most detections that make no more than so many false positives; 0 where even the first of the
    curve makes more."""
    at = int(np.searchsorted(row.false_positives, false_positives, side="right")) - 1
    return row.rates(kind)[at] if at >= 0 else 0.0


def roc_numbers(rows: Sequence[Roc]) -> dict[str, Any]:
    """True-positive rates at 1000 and 2000 false positives, the usual figures, beside the curves."""
    return {
        "rows": [
            row.model_dump()
            | {f"{kind}_at": {str(mark): rate_at(row, kind, mark) for mark in READ_AT} for kind in KINDS}
            for row in rows
        ]
    }


def draw_roc(rows: Sequence[Roc], most: float) -> Figure:
    """Both curves up to `most` false positives, with the rate at 1000 in the legend, the best first."""
    figure = new_figure(11, 4.8)
    for axes, kind in zip(figure.subplots(1, 2), KINDS, strict=True):
        mark = min(READ_AT[0], most)
        lowest = 1.0
        order = sorted(range(len(rows)), key=lambda at: -rate_at(rows[at], kind, mark))
        for number in order:
            row = rows[number]
            # A curve that ends early goes on at its last rate: lower scores were not reported.
            x = [value for value in row.false_positives if value <= most]
            y = row.rates(kind)[: len(x)]
            label = f"{row.source}: {100 * rate_at(row, kind, mark):.2f} %"
            axes.plot([*x, most], [*y, y[-1] if y else 0.0], drawstyle="steps-post", label=label,
                      **line_style(number))  # fmt: skip
            lowest = min(lowest, rate_at(row, kind, most / 100))
        style(axes, "false positives", "true-positive rate", f"FDDB, {kind} score")
        axes.set_xlim(0, most)
        axes.set_ylim(max(0.0, np.floor(lowest * 10) / 10 - 0.1), 1.005)
        axes.axvline(mark, color="#9a9a9a", linewidth=0.9, linestyle=":", zorder=0)
        axes.legend(loc="lower right", fontsize=9, title=f"at {mark:g} false positives", title_fontsize=9,
                    alignment="left")  # fmt: skip
    return figure
