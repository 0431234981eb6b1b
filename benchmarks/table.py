"""The accuracy benchmark as text: one line a detector on the terminal, and a Markdown table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from benchmarks.accuracy import Row, Table

COLUMNS = ("AP.50", "AP", "small", "medium", "large", "strict", "recall")


def _accuracies(row: Row) -> list[str]:
    values = (row.ap50, row.ap, row.ap50_small, row.ap50_medium, row.ap50_large, row.ap50_strict, row.recall50)
    return ["-" if value is None else f"{value:.4f}" for value in values]


def print_row(row: Row, first: bool, cached: bool) -> None:
    """Print one line, with the header before the first."""
    if first:
        names = " ".join(f"{name:>7}" for name in COLUMNS)
        typer.echo(f"{'detector':20} {'side':>5} {names} {'ms':>7} {'cpu ms':>7}")
    cells = " ".join(f"{cell:>7}" for cell in _accuracies(row))
    note = "  (measured before)" if cached else ""
    typer.echo(f"{row.detector:20} {row.long_side:5} {cells} {row.ms_median:7.1f} {row.cpu_ms_median:7.1f}{note}")


def markdown(table: Table) -> str:
    """The whole table, best AP.50 first, our rows in bold, with what it was measured on."""
    machine = table.hardware
    lines = [
        f"# Accuracy and CPU time, {table.data} {table.split}",
        "",
        f"{table.photos} photos, {table.faces} faces, {table.ignored} ignore regions; protocol: {table.protocol}; "
        "every photo resized to the long side given. Time: from decoded pixels to boxes, resizing included, one photo "
        f"at a time, CPU threads: {table.threads}; median (mean), and the median of CPU time.",
        "",
        f"Machine: {machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB; Python {machine.python}; "
        + ", ".join(f"{name} {version}" for name, version in machine.packages.items())
        + f"; {machine.date}.",
        "",
        "Small faces are under 5 % of the photo's long side, large ones 15 % and more; their columns are AP.50. "
        "`strict` counts false positives on photos without faces too. `load` is the machine's load average at the "
        "start: the nearer to none, the better the times.",
        "",
        "| detector | long side | " + " | ".join(COLUMNS) + " | ms | CPU ms | load |",
        "|---|" + "---:|" * (len(COLUMNS) + 4),
    ]
    for row in sorted(table.rows, key=lambda one: -one.ap50):
        name = f"**{row.detector}**" if row.ours else row.detector
        times = f"{row.ms_median:.1f} ({row.ms_mean:.1f}) | {row.cpu_ms_median:.1f} | {row.load:g}"
        lines.append(f"| {name} | {row.long_side} | " + " | ".join(_accuracies(row)) + f" | {times} |")
    return "\n".join(lines) + "\n"
