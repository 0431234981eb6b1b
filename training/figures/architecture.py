"""Figure 6: a genotype as a graph; and how the probabilities of a search move with its epochs."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.figures.drawing import LINES, new_figure, style
from training.models.genotype import AnyGenotype, AutoFAEGenotype, CellGenotype, EnhancementCell, FusionGenotype

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NODE, _WARM, _COOL = "#dce9f2", "#d9822b", "#145a86"
_LAST_EPOCHS = "architecture.jsonl"
_KINDS = ("alpha", "beta", "kappa", "gamma")


def draw_genotype(genotype: AnyGenotype) -> Figure:
    """The graph of a genotype: levels as lines, the finest at the bottom, from left to right as data flows.

    Raises ValueError where networkx or matplotlib is not installed.
    """
    if isinstance(genotype, FusionGenotype):
        figure = new_figure(6.0, 5.5)
        _draw_fusion(figure.subplots(), genotype)
        return figure
    if isinstance(genotype, CellGenotype):
        figure = new_figure(7.5, 4.0)
        _draw_cell(figure.subplots(), genotype)
        return figure
    parts = bool(genotype.top_down) + bool(genotype.enhancement)
    figure = new_figure(7.0 * parts, 6.5)
    frames = list(figure.subplots(1, parts, squeeze=False)[0])
    if genotype.top_down:
        _draw_paths(frames.pop(0), genotype)
    if genotype.enhancement:
        _draw_enhancement(frames.pop(0), genotype)
    return figure


def _draw_paths(axes: Axes, genotype: AutoFAEGenotype) -> None:
    """AutoFA: an arrow for each candidate kept, labelled with its alpha; what a cell has of its own level is grey."""
    place: dict[str, tuple[float, float]] = {}
    edges: dict[tuple[str, str], str] = {}
    own: list[tuple[str, str]] = []
    for level in genotype.levels:
        place[f"F{level}"] = (0.0, float(level))
    # A path is a staircase in the order of its steps, so that arrows to different steps do not lie upon each other.
    for start, kind, cells in ((1.5, "T", genotype.top_down), (7.0, "C", genotype.bottom_up)):
        for step, cell in enumerate(cells):
            place[f"{kind}{cell.level}"] = (start + 0.8 * step, float(cell.level))
    for kind, before, cells in (("T", "F", genotype.top_down), ("C", "T", genotype.bottom_up)):
        for cell in cells:
            own.append((f"{before}{cell.level}", f"{kind}{cell.level}"))
            for candidate in cell.candidates:
                edges[f"{kind}{candidate.level}", f"{kind}{cell.level}"] = f"{candidate.alpha:.2f}"
    _draw_graph(axes, place, own, edges)
    middle = " and AutoFE" if genotype.enhancement and genotype.position == "middle" else ""
    axes.set_title(f"AutoFA: features F, top-down T{middle}, bottom-up C; alpha of kept candidates", fontsize=9)


def _draw_enhancement(axes: Axes, genotype: AutoFAEGenotype) -> None:
    """AutoFE: one line a level; node 0 is the input, and a thick border marks the leaves, whose sum is the output."""
    place: dict[str, tuple[float, float]] = {}
    edges: dict[tuple[str, str], str] = {}
    for cell in genotype.enhancement:
        place |= _cell_places(cell)
        for node in cell.nodes:
            edges[f"{cell.level}:{node.input}", f"{cell.level}:{node.node}"] = node.operation.removeprefix("conv")
    leaves = {f"{cell.level}:{leaf}" for cell in genotype.enhancement for leaf in cell.leaves}
    _draw_graph(axes, place, [], edges, bold=leaves, label=lambda name: name.partition(":")[2])
    for cell in genotype.enhancement:
        axes.text(-0.7, cell.level, f"P{cell.level}", ha="right", va="center", fontsize=9)
    axes.set_title(f"AutoFE, {genotype.position}: height x width of each convolution, d: dilation", fontsize=9)


def _cell_places(cell: EnhancementCell) -> dict[str, tuple[float, float]]:
    """Nodes apart by their depth, and those of the same depth one above the other."""
    depth = {0: 0}
    for node in cell.nodes:
        depth[node.node] = depth[node.input] + 1
    places = {}
    for number, column in depth.items():
        same = [n for n in depth if depth[n] == column]
        shift = (same.index(number) - (len(same) - 1) / 2) * 0.44
        places[f"{cell.level}:{number}"] = (1.7 * column, cell.level + shift)
    return places


def _draw_fusion(axes: Axes, genotype: FusionGenotype) -> None:
    place = {f"{kind}{level}": (4.0 * c, float(level)) for level in genotype.levels for c, kind in enumerate("FC")}
    edges = {
        (f"F{edge.source}", f"C{level}"): edge.operation.replace("_", " ")
        for level, kept in zip(genotype.levels, genotype.edges, strict=True)
        for edge in kept
    }
    _draw_graph(axes, place, [], edges, curve=0.0)
    axes.set_title(f"Fully-connected fusion, {genotype.method}", fontsize=9)


def _draw_cell(axes: Axes, genotype: CellGenotype) -> None:
    last = len(genotype.nodes) + 2
    place = {str(n): (1.8 * max(0, n - 1), 0.6 * (-1) ** n + (0.25 if n == 0 else 0.0)) for n in range(last)}
    edges: dict[tuple[str, str], str] = {}
    for number, kept in enumerate(genotype.nodes, start=2):
        for edge in kept:
            edges[str(edge.input), str(number)] = edge.operation.replace("_", " ")
    _draw_graph(axes, place, [], edges)
    axes.set_title(f"Cell of {genotype.method}, of every level: inputs 0 and 1, nodes from 2", fontsize=9)


def _draw_graph(
    axes: Axes,
    place: dict[str, tuple[float, float]],
    plain: list[tuple[str, str]],
    labelled: dict[tuple[str, str], str],
    bold: set[str] | frozenset[str] = frozenset(),
    label: Any = str,
    curve: float = 0.18,
) -> None:
    try:
        import networkx as nx
    except ImportError:
        raise ValueError("drawing a genotype needs networkx, which comes with the `training` extra") from None
    graph = nx.DiGraph()
    graph.add_nodes_from(place)
    graph.add_edges_from([*plain, *labelled])
    nx.draw_networkx_nodes(
        graph, place, ax=axes, node_color=_NODE, node_size=420,
        edgecolors=[_WARM if n in bold else _COOL for n in graph],
        linewidths=[2.4 if n in bold else 0.8 for n in graph],
    )  # fmt: skip
    nx.draw_networkx_labels(graph, place, {name: label(name) for name in graph}, ax=axes, font_size=8)
    nx.draw_networkx_edges(graph, place, edgelist=plain, ax=axes, edge_color="#b8b8b8", arrowsize=9, node_size=420)
    bend = f"arc3,rad={curve}"
    nx.draw_networkx_edges(
        graph, place, edgelist=list(labelled), ax=axes, edge_color=_COOL, arrowsize=9, node_size=420,
        connectionstyle=bend,
    )  # fmt: skip
    nx.draw_networkx_edge_labels(
        graph, place, labelled, ax=axes, font_size=7, connectionstyle=bend, rotate=False, label_pos=0.45,
        bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8},
    )  # fmt: skip
    axes.set_axis_off()
    axes.margins(0.12)


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a search's `architecture.jsonl`. Raises FileNotFoundError, or ValueError that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: a search writes it into the folder of each seed, as {_LAST_EPOCHS}")
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not lines or not all(isinstance(line["values"], dict) and isinstance(line["step"], int) for line in lines):
            raise ValueError("no epochs in it")
        if not any(name.startswith(_KINDS) for name in lines[0]["values"]):
            raise ValueError(f"none of {', '.join(_KINDS)} in it")
        lengths = [{name: len(values) for name, values in line["values"].items()} for line in lines]
        if any(one != lengths[0] or 0 in one.values() for one in lengths):
            raise ValueError("its epochs do not have the same parameters")
        if not all(isfinite(value) for line in lines for values in line["values"].values() for value in values):
            raise ValueError("a parameter is not finite")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the history of a search: {error}") from None
    return lines


def draw_history(lines: list[dict[str, Any]]) -> Figure:
    """One panel each for alpha, beta, kappa and gamma, as far as there are: the largest value of every choice by step
    (both values of beta), so that a choice that is being made rises."""
    kinds = [kind for kind in _KINDS if any(n.startswith(kind) for n in lines[0]["values"])]
    figure = new_figure(4.6 * len(kinds), 3.6)
    steps = [line["step"] for line in lines]
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        names = [
            n for n in lines[0]["values"] if n.startswith(kind) and (kind == "beta" or len(lines[0]["values"][n]) > 1)
        ]
        levels = sorted({_level(name) for name in names})
        seen: set[str] = set()
        for name in names:
            level = _level(name)
            colour = LINES[levels.index(level) % len(LINES)]
            rows = zip(*(line["values"][name] for line in lines), strict=True) if kind == "beta" else [
                [max(line["values"][name]) for line in lines]
            ]  # fmt: skip
            for part, values in enumerate(rows):
                axes.plot(
                    steps, list(values), color=colour, linestyle="--" if part else "-", linewidth=1.2,
                    label=level if level not in seen else None, marker="." if len(steps) < 12 else None,
                )  # fmt: skip
                seen.add(level)
        what = "value (beta_1 dashed)" if kind == "beta" else "largest probability"
        style(axes, "step", what, kind)
        axes.legend(fontsize=7, frameon=False)
    return figure


def _level(name: str) -> str:
    """`alpha_top_down_P5` -> P5; parameters of no level share one name."""
    return next((part for part in name.split("_") if part[:1] == "P" and part[1:].isdecimal()), "all levels")
