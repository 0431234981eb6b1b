"""Results of an ablation, and their summary for people."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pydantic import BaseModel


class Budget(BaseModel):
    """What every run of a table gets. images: crops of `side` pixels in batches of `batch`; start: the weights that
    all runs begin with, if any, by name and hash, without their head unless keep_head; photos of the split, resized to
    `long_side`; teacher: of the rows that need one, by name and hash."""

    base: str
    member: str
    data: str
    device: str
    images: int
    side: int
    batch: int
    start: str | None
    start_sha256: str | None
    keep_head: bool
    split: str
    photos: int
    long_side: int
    teacher: str | None = None


class Result(BaseModel):
    """One run. AP and recall in 0..1 on the split; seconds: training alone."""

    row: str
    about: str
    kind: str
    seed: int
    ap50: float
    ap: float
    recall50: float
    images: int
    seconds: float


class Table(BaseModel):
    """Everything that was run under one budget, and where."""

    budget: Budget
    hardware: str
    results: list[Result]


class Line(BaseModel):
    """One row over its seeds. gain: mean difference of AP.50 to the base over the seeds that both have, None without;
    spread: largest minus smallest AP.50, None for one seed."""

    row: str
    about: str
    kind: str
    seeds: int
    ap50: float
    spread: float | None
    ap: float
    gain: float | None


def summarise(results: Sequence[Result], base: str) -> list[Line]:
    """One line a row, best gain first within its kind, the base on top."""
    by_row: dict[str, list[Result]] = {}
    for result in results:
        by_row.setdefault(result.row, []).append(result)
    base_by_seed = {r.seed: r.ap50 for r in by_row.get(base, ())}
    lines = []
    for row, runs in by_row.items():
        values = [r.ap50 for r in runs]
        differences = [r.ap50 - base_by_seed[r.seed] for r in runs if r.seed in base_by_seed]
        gain = statistics.fmean(differences) if differences and row != base else None
        line = Line(
            row=row, about=runs[0].about, kind=runs[0].kind, seeds=len(runs), ap50=statistics.fmean(values),
            spread=max(values) - min(values) if len(values) > 1 else None,
            ap=statistics.fmean(r.ap for r in runs), gain=gain,
        )  # fmt: skip
        lines.append(line)
    return sorted(lines, key=lambda line: (line.row != base, line.kind != "recipe", -(line.gain or 0.0)))


def markdown(table: Table, base: str) -> str:
    """The table for people."""
    b = table.budget
    start = "random weights"
    if b.start:
        start = f"`{b.start}`" + ("" if b.keep_head else ", head fresh")
    lines = [
        f"# Ablation against `{b.base}`, {b.member}",
        "",
        f"Every run: {b.images} crops of {b.side} pixels in batches of {b.batch}, started from {start}; "
        f"AP on {b.photos} photos of `{b.split}` at long side {b.long_side}. {table.hardware}."
        + (f" The teacher is {b.teacher}." if b.teacher else ""),
        "",
        "The gain is the mean difference to the base with the same seeds. Spread is the largest minus the smallest "
        "AP.50 of a row's seeds: a gain that is no larger than such spreads says nothing.",
        "",
        "| row | what changes | seeds | AP.50 | spread | gain | AP |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for line in summarise(table.results, base):
        spread = "" if line.spread is None else f"{line.spread:.4f}"
        gain = "" if line.gain is None else f"{line.gain:+.4f}"
        lines.append(
            f"| {line.row} | {line.about} | {line.seeds} | {line.ap50:.4f} | {spread} | {gain} | {line.ap:.4f} |"
        )
    return "\n".join(lines) + "\n"
