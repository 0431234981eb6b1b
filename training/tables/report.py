"""Results of a table, kept run by run, and the table for people."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from training.files import write_bytes, write_json
from training.tables.rows import Row, TableSpec

_SUBSETS = ("easy", "medium", "hard")


class Result(BaseModel):
    """One run. scores: in 0..1 by name; images: crops trained on; seconds: training alone; genotype: where that of a
    searched row comes from."""

    row: str
    seed: int
    scores: dict[str, float]
    images: int
    seconds: float
    parameters: int
    genotype: dict[str, Any] | None = None


class Settings(BaseModel):
    """What all runs of a table share, and are refused without. The last three have the defaults that tables of earlier
    versions are read with: train_split is what was trained on; start_sha256 of the weights that every run began with;
    genotypes: name and SHA-256 of the folder of kept ones, None where all were searched."""

    table: int
    budget: str
    data: str
    split: str
    photos: int
    protocol: str
    training: str
    start: str | None
    official: bool = False
    hardware: str
    train_split: str = "train"
    start_sha256: str | None = None
    genotypes: str | None = None


class Line(BaseModel):
    """One row over its seeds: means and, for two seeds or more, largest minus smallest AP.50."""

    name: str
    paper: dict[str, float] | None
    ours: dict[str, float] | None
    spread: float | None
    gain: float | None
    seeds: int
    parameters: int | None


def open_settings(path: Path, settings: Settings) -> None:
    """Keep the settings beside the results. Raises ValueError where results of others are there."""
    if path.is_file():
        try:
            stored = Settings.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError:
            raise ValueError(f"{path} is not a file of this command") from None
        if stored != settings:
            differs = [n for n in Settings.model_fields if getattr(stored, n) != getattr(settings, n)]
            raise ValueError(f"{path.parent} holds runs with another {', '.join(differs)}; name another --out")
    write_json(path, settings.model_dump())


def read_results(folder: Path) -> list[Result]:
    """All finished runs. Raises ValueError that names a file which is none."""
    results = []
    for path in sorted(folder.glob("*.json")):
        try:
            results.append(Result.model_validate_json(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            raise ValueError(f"{path} is not a result: {error.errors()[0]['msg']}; remove it to run it again") from None
    return results


def summarise(spec: TableSpec, results: Sequence[Result]) -> list[Line]:
    """A line a row, in the table's order; gain: AP.50 over the first row's, mean over the seeds that both have."""
    by_row: dict[str, list[Result]] = {row.name: [r for r in results if r.row == row.name] for row in spec.rows}
    base = {r.seed: r.scores["ap50"] for r in by_row[spec.rows[0].name]}
    return [_line(row, by_row[row.name], base, first=row is spec.rows[0]) for row in spec.rows]


def _line(row: Row, runs: Sequence[Result], base: Mapping[int, float], first: bool) -> Line:
    printed = dict(row.paper) if row.paper is not None else None
    if not runs:
        return Line(name=row.name, paper=printed, ours=None, spread=None, gain=None, seeds=0, parameters=None)
    ours = {name: statistics.fmean(r.scores[name] for r in runs) for name in runs[0].scores}
    values = [r.scores["ap50"] for r in runs]
    gains = [r.scores["ap50"] - base[r.seed] for r in runs if r.seed in base]
    return Line(
        name=row.name, paper=printed, ours=ours, spread=max(values) - min(values) if len(runs) > 1 else None,
        gain=statistics.fmean(gains) if gains and not first else None, seeds=len(runs), parameters=runs[0].parameters,
    )  # fmt: skip


def write_table(out: Path, spec: TableSpec, settings: Settings, results: Sequence[Result]) -> str:
    """Write `table-N.json` and `table-N.md` into `out`. Returns the Markdown."""
    lines = summarise(spec, results)
    content = {
        "table": spec.number, "title": spec.title, "settings": settings.model_dump(),
        "rows": [line.model_dump() for line in lines], "runs": [r.model_dump() for r in results],
    }  # fmt: skip
    write_json(out / f"table-{spec.number}.json", content)
    text = markdown(spec, settings, lines)
    write_bytes(out / f"table-{spec.number}.md", text.encode())
    return text


def markdown(spec: TableSpec, settings: Settings, lines: Sequence[Line]) -> str:
    """The table for people: ours beside what the paper printed, which is of other data and another budget."""
    head = [
        f"# Table {spec.number}: {spec.title}",
        "",
        f"Budget `{settings.budget}`: {settings.training}. Started from {settings.start or 'random weights'}. "
        f"AP on {settings.photos} photos of `{settings.data}`, split `{settings.split}`, {settings.protocol}. "
        f"{settings.hardware}.",
        "",
        "Percent throughout. The paper's values are of WIDER Face's validation set and of its own training; only the "
        "order of rows can be compared, and only where differences exceed the spread.",
        "",
    ]
    body = _grid(lines) if spec.layout == "grid" else _list(lines)
    return "\n".join([*head, *body]) + "\n"


def _list(lines: Sequence[Line]) -> list[str]:
    official = any(line.ours and "ap50_hard" in line.ours for line in lines)
    ours = [f"AP.50 {s}" for s in _SUBSETS] + [f"AP {s}" for s in _SUBSETS] if official else ["AP.50", "AP"]
    names = [f"ap50_{s}" for s in _SUBSETS] + [f"ap_{s}" for s in _SUBSETS]
    title = ["module", "seeds", *ours, "spread", "gain", "parameters", "paper AP.50 e/m/h", "paper AP e/m/h"]
    out = ["| " + " | ".join(title) + " |", "|---|" + "---:|" * (len(title) - 1)]
    for line in lines:
        values = [(line.ours or {}).get(name) for name in (names if official else ("ap50", "ap"))]
        cells = [
            line.name, str(line.seeds), *map(_percent, values), _percent(line.spread), _percent(line.gain, sign=True),
            "" if line.parameters is None else f"{line.parameters / 1e6:.2f} M",
            *(_printed(line.paper, kind) for kind in ("ap50", "ap")),
        ]  # fmt: skip
        out.append("| " + " | ".join(cells) + " |")
    return out


def _grid(lines: Sequence[Line]) -> list[str]:
    """Names such as `P2 with P3` and `rfe on P2`: what stands first is the line, what stands last is the column."""
    base, *rest = lines
    columns = sorted({line.name.split()[-1] for line in rest})
    ours = "AP.50 hard" if base.ours and "ap50_hard" in base.ours else "AP.50"
    score = "ap50_hard" if "hard" in ours else "ap50"
    cells = {(line.name.split()[0], line.name.split()[-1]): line for line in rest}
    mine = {line.name: _number((line.ours or {}).get(score), 100.0) for line in lines}
    printed = {line.name: _number((line.paper or {}).get("ap50_hard"), 1.0) for line in lines}
    out = []
    for title, values in ((ours, mine), ("the paper's AP.50 on hard", printed)):
        out += [f"{title}; base line ({base.name}): {values[base.name]}", ""]
        out += ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
        for name in dict.fromkeys(line.name.split()[0] for line in rest):
            row = [values[cells[name, c].name] if (name, c) in cells else "" for c in columns]
            out.append(f"| {name} | " + " | ".join(row) + " |")
        out.append("")
    return out[:-1]


def _number(value: float | None, scale: float) -> str:
    return "" if value is None else f"{scale * value:.1f}"


def _percent(value: float | None, sign: bool = False) -> str:
    return "" if value is None else f"{100 * value:{'+' if sign else ''}.1f}"


def _printed(scores: Mapping[str, float] | None, kind: str) -> str:
    if not scores or f"{kind}_easy" not in scores:
        return ""
    return " / ".join(f"{scores[f'{kind}_{s}']:.1f}" for s in _SUBSETS)
