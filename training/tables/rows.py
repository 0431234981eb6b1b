"""Which detectors each table compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from training.family import MEMBERS
from training.models.genotype import Position
from training.models.necks.base import LEVELS, NeckOptions
from training.supernet.path import SinglePath
from training.tables import paper


@dataclass(frozen=True)
class Wanted:
    """The genotype that a row needs. space: searched in, or drawn from where `random`; two spaces: AutoFA of the one
    and AutoFE of the other, one behind the other (Table 5)."""

    spaces: tuple[str, ...]
    position: Position = "middle"
    random: bool = False


@dataclass(frozen=True)
class Row:
    """One row. shape: backbone, head and width, where the table sets them (Table 7).

    paper: what the paper printed, in percent; None where it has no such row.
    """

    name: str
    neck: str
    options: NeckOptions = field(default_factory=NeckOptions)
    wanted: Wanted | None = None
    shape: SinglePath | None = None
    paper: Mapping[str, float] | None = None


@dataclass(frozen=True)
class TableSpec:
    """layout: a list of rows, or levels against something, of which only AP.50 is printed. multi_scale: tested so."""

    number: int
    title: str
    rows: tuple[Row, ...]
    layout: Literal["list", "grid"] = "list"
    multi_scale: bool = False


TABLES = (1, 2, 3, 4, 5, 6, 7)


def table_spec(number: int) -> TableSpec:
    """The rows of Table `number`, the first being the base line. Raises ValueError where there is no such table.

    Table 8 is not of this kind: see `tables.generic`.
    """
    makers = {1: _pairs, 2: _levels, 3: _aggregations, 4: _enhancements, 5: _methods, 6: _positions, 7: _family}
    if number not in makers:
        known = ", ".join(map(str, TABLES))
        raise ValueError(f"no table {number} of faces; there are {known}, and 8 of COCO's objects")
    return makers[number]()


def _pairs() -> TableSpec:
    rows = [Row("none", "none", paper={"ap50_hard": paper.PAIRS[0][0]})]
    for row, level in enumerate(LEVELS):
        for column, source in enumerate(LEVELS):
            if level != source:
                options = NeckOptions(pair=(level, source))
                value = {"ap50_hard": paper.PAIRS[row][column]}
                rows.append(Row(f"P{level} with P{source}", "pair", options, paper=value))
    return TableSpec(1, "One level aggregated with one other", tuple(rows), "grid")


def _levels() -> TableSpec:
    rows = [Row("fpn", "fpn", paper={"ap50_hard": paper.AGGREGATIONS["fpn"]["ap50_hard"]})]
    for name, values in paper.LEVELS.items():
        for level, value in zip(LEVELS, values, strict=True):
            options = NeckOptions(levels=(level,), on_fpn=True)
            rows.append(Row(f"{name} on P{level}", name, options, paper={"ap50_hard": value}))
    return TableSpec(2, "One enhancement on one level of FPN", tuple(rows), "grid")


def _searched(name: str, scores: Mapping[str, float] | None) -> Row:
    searched = name in ("auto-fpn", "darts-fa", "pc-darts-fa", "autofa", "darts-fe", "pc-darts-fe", "autofe")
    return Row(name, name, wanted=Wanted((name,)) if searched else None, paper=scores)


def _random(name: str) -> Row:
    return Row(f"random {name}", name, wanted=Wanted((name,), random=True))


def _aggregations() -> TableSpec:
    rows = [_searched(name, scores) for name, scores in paper.AGGREGATIONS.items()]
    return TableSpec(3, "Feature aggregation", (*rows, _random("autofa")))


def _enhancements() -> TableSpec:
    rows = [_searched(name, scores) for name, scores in paper.ENHANCEMENTS.items()]
    return TableSpec(4, "Feature enhancement, without FPN", (*rows, _random("autofe")))


def _methods() -> TableSpec:
    rows = (
        Row("fpn", "fpn", paper=paper.AGGREGATIONS["fpn"]),
        Row("AutoFA + AutoFE", "autofae", wanted=Wanted(("autofa", "autofe"), "after"), paper=paper.CASCADE),
        Row("joint search", "autofae", wanted=Wanted(("autofae",)), paper=paper.JOINT),
        _random("autofae"),
    )
    return TableSpec(5, "How AutoFAE is searched", rows)


def _positions() -> TableSpec:
    rows = [Row("fpn", "fpn", paper=paper.AGGREGATIONS["fpn"])]
    places: tuple[tuple[Position, Mapping[str, float]], ...] = (
        ("before", paper.BEFORE), ("middle", paper.JOINT), ("after", paper.AFTER),
    )  # fmt: skip
    rows += [Row(place, "autofae", wanted=Wanted(("autofae",), place), paper=scores) for place, scores in places]
    return TableSpec(6, "Where AutoFE stands", tuple(rows))


def _family() -> TableSpec:
    rows = [
        Row(name, "autofae", NeckOptions(modules=path.modules), Wanted(("autofae",)), path, paper.MEMBERS[name])
        for name, path in MEMBERS.items()
    ]
    return TableSpec(7, "The family", tuple(rows), multi_scale=True)
