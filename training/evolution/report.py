"""What a search found, for people and for the next command: tables, a picture, and `family.json`."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from training.evolution.genetic import EvolutionConfig, fittest
from training.evolution.records import Latency, Record, front
from training.family import FoundMember
from training.figures.drawing import LINES, new_figure, style
from training.figures.front import TICKS
from training.figures.labels import Label, place_labels
from training.files import write_bytes
from training.models.detector import build_detector
from training.supernet.path import SinglePath

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HISTORY = ("path", "latency_ms", "ap50", "generation", "budget_ms", "origin")


@dataclass(frozen=True)
class Reference:
    """A detector to compare with, such as Table 7's d0. latency_ms and ap50: as the candidates'."""

    name: str
    path: str
    latency_ms: float
    ap50: float


def parameters_of(path: SinglePath, genotype: str) -> int:
    """Trainable numbers of a path's stand-alone detector. genotype: JSON, empty for the project's own."""
    with torch.device("meta"):
        detector = build_detector(path.config("autofae", genotype))
    return sum(p.numel() for p in detector.parameters())


def front_csv(history: Sequence[Record], parameters: Callable[[SinglePath], int]) -> str:
    """The front as CSV, fastest first."""
    columns = ("path", "latency_ms", "ap50", "params")
    rows = ((r.path, f"{r.latency_ms:.3f}", f"{r.ap50:.4f}", parameters(r.single())) for r in front(history))
    return _csv(columns, rows)


def history_csv(history: Sequence[Record]) -> str:
    """Every candidate of every search as CSV; those of the random searches have the origin `random`."""
    return _csv(
        _HISTORY,
        ((r.path, f"{r.latency_ms:.3f}", f"{r.ap50:.4f}", r.generation, f"{r.budget_ms:g}", r.origin) for r in history),
    )


def _csv(columns: Sequence[str], rows: object) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)  # type: ignore[arg-type]
    return out.getvalue()


def choose_members(
    history: Sequence[Record],
    budgets: Sequence[float],
    config: EvolutionConfig,
    confirm: Latency | None = None,
) -> tuple[list[FoundMember], list[str]]:
    """(the fittest candidate within each budget, smallest budget first, and what is to be said about the rest).

    history: of all budgets' searches together, so that a larger budget never does worse than a smaller one; where it
    does no better in AP.50, it gets no member. confirm: measures whole paths, where the searches only predicted their
    latency: those that turn out to exceed the budget are passed over, `top_k` of them at most.
    """
    members: list[FoundMember] = []
    notes: list[str] = []
    last: Record | None = None
    unique = list({record.path: record for record in history}.values())
    for budget in sorted(budgets):
        within = [r.model_copy(update={"budget_ms": budget}) for r in unique if r.latency_ms <= budget]
        ranked = fittest(within, config, config.top_k)
        best = next(iter(ranked), None) if confirm is None else _confirmed(ranked, budget, confirm, notes)
        if best is None:
            notes.append(f"{budget:g} ms: no member, since no candidate is within the budget")
        elif last is not None and best.ap50 <= last.ap50:
            notes.append(
                f"{budget:g} ms: no member, since the best candidate, {best.path} with AP.50 {best.ap50:.4f}, is not "
                f"better than that of {last.budget_ms:g} ms"
            )
        else:
            last = best
            members.append(
                FoundMember(
                    name=f"ms{budget:g}", path=best.path, budget_ms=budget,
                    latency_ms=round(best.latency_ms, 3), ap50=round(best.ap50, 4),
                )
            )  # fmt: skip
    return members, notes


def _confirmed(ranked: Sequence[Record], budget: float, confirm: Latency, notes: list[str]) -> Record | None:
    for record in ranked:
        whole = confirm(record.single())
        if whole <= budget:
            return record.model_copy(update={"latency_ms": whole})
        notes.append(
            f"{budget:g} ms: {record.path} was passed over, predicted {record.latency_ms:.3g} ms, measured {whole:.3g}"
        )
    return None


def draw(
    genetic: Sequence[Record],
    random: Sequence[Record],
    members: Sequence[FoundMember],
    printed: Sequence[Reference],
    budgets: Sequence[float],
    where: str,
) -> Figure:
    """Candidates of both searches with their fronts, the family, Table 7's members, and the budgets.

    where: what latency was measured on, for the axis.
    """
    figure = new_figure(8.5, 5.4)
    axes = figure.add_subplot()
    both = ((genetic, "genetic", LINES[2], "-"), (random, "random, as many", LINES[1], "--"))
    for records, name, colour, dashes in both:
        if records:
            axes.scatter(
                [r.latency_ms for r in records], [r.ap50 for r in records], s=9, color=colour, alpha=0.25, linewidth=0
            )
            best = front(records)
            axes.plot(
                [r.latency_ms for r in best], [r.ap50 for r in best], drawstyle="steps-post", marker="o", markersize=3,
                linewidth=1.6, linestyle=dashes, color=colour, label=f"{name} ({len(records)} evaluations)",
            )  # fmt: skip
    labels = [*_mark(axes, members, "D", LINES[0], "family"), *_mark(axes, printed, "s", LINES[5], "Table 7's paths")]
    for budget in budgets:
        axes.axvline(budget, color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=0)
    times = [r.latency_ms for r in (*genetic, *random)] + [p.latency_ms for p in printed]
    _log_scale(axes, [*times, *budgets])
    style(axes, f"latency of the network (ms, log scale), {where}", "AP.50 of the slice on the mini-validation")
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    place_labels(axes, labels)
    return figure


def _mark(axes: Axes, points: Sequence[FoundMember | Reference], marker: str, colour: str, label: str) -> list[Label]:
    if points:
        axes.plot(
            [p.latency_ms for p in points], [p.ap50 for p in points], linestyle="none", marker=marker, markersize=6,
            color=colour, label=label,
        )  # fmt: skip
    return [Label(p.name, p.latency_ms, p.ap50, colour, 8, "bold", 0) for p in points]


def _log_scale(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.set_xticks([tick for tick in TICKS if min(values) / 2 <= tick <= max(values) * 2])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1, y=0.1)


def numbers(
    genetic: Sequence[Record], random: Sequence[Record], members: Sequence[FoundMember], printed: Sequence[Reference]
) -> Mapping[str, object]:
    """What the picture shows, as JSON."""
    return {
        "genetic_front": [r.model_dump() for r in front(genetic)],
        "random_front": [r.model_dump() for r in front(random)],
        "family": [m.model_dump() for m in members],
        "table_7": [vars(p) for p in printed],
    }


def write_tables(out: Path, genetic: Sequence[Record], every: Sequence[Record], genotype: str) -> None:
    """`front.csv` of the genetic searches, and `history.csv` of all."""
    write_bytes(out / "front.csv", front_csv(genetic, lambda path: parameters_of(path, genotype)).encode())
    write_bytes(out / "history.csv", history_csv(every).encode())
