"""The load benchmark as a picture: attainment and effective AP.50 by load, a line a policy, a column a trace."""

from __future__ import annotations

from pathlib import Path

from benchmarks.load.report import Report
from training.figures.drawing import encode, line_style, new_figure, style
from training.files import write_bytes


def draw(report: Report, path: Path) -> None:
    """Write a PNG. Loads stand at equal distances; crosses are the simulator's. Raises ValueError where matplotlib is
    not installed."""
    traces = list(dict.fromkeys(row.trace for row in report.results))
    policies = list(dict.fromkeys(row.policy for row in report.results))
    loads = sorted({row.load for row in report.results})
    figure = new_figure(1.5 + 3.6 * len(traces), 6.4)
    for column, trace in enumerate(traces):
        for line, (title, measured, simulated) in enumerate(
            (
                ("attainment", "attainment", "simulated_attainment"),
                ("effective AP.50", "effective_ap", "simulated_effective_ap"),
            )
        ):
            axes = figure.add_subplot(2, len(traces), line * len(traces) + column + 1)
            for number, policy in enumerate(policies):
                own = {row.load: row for row in report.results if (row.trace, row.policy) == (trace, policy)}
                at = [k for k, load in enumerate(loads) if load in own]
                colours = line_style(number)
                values = [getattr(own[loads[k]], measured) for k in at]
                axes.plot(at, values, marker="o", markersize=4, label=policy, **colours)
                others = [getattr(own[loads[k]], simulated) for k in at]
                axes.plot(at, others, "x", color=colours["color"], markersize=6)
            style(axes, "load, of capacity" if line else "", title if not column else "", trace if not line else "")
            axes.set_xticks(range(len(loads)), [f"{load:g}" for load in loads])
            axes.set_ylim(0.0, 1.03)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False, fontsize=8)
    write_bytes(path, encode(figure))
