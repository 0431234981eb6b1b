"""A simulation's results for people and for programs: a Markdown table, JSON and a figure."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.simulation.results import Result
from service.simulation.simulate import Setting
from service.simulation.spec import shown

FILES = ("simulation.json", "simulation.md", "simulation.png")
_COLOURS = {"attainment": "#145a86", "effective AP.50": "#2f9e73"}


class NoMatplotlibError(RuntimeError):
    """The figure cannot be drawn; the message says what to install."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that a reader needs to judge the results. profile: its file's name; rate: mean arrivals a second."""

    trace: str
    profile: str
    hardware: str
    date: str
    requests: int
    rate: float
    capacity: float
    setting: Setting
    results: tuple[Result, ...]


def check_folder(out: Path) -> None:
    """Raises OSError where no files can be written into the folder `out`; what it makes to find out is gone again.

    For before a simulation, whose results would be lost.
    """
    made: list[Path] = []
    try:
        made = [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        taken = [name for name in FILES if (out / name).is_dir()]
    except FileExistsError:
        raise FileExistsError(f"{shown(str(out))} is a file; name a folder with --out") from None
    except OSError as error:
        why = error.strerror or error
        raise OSError(f"nothing can be written to {shown(str(out))} ({why}); name another folder with --out") from None
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
    if taken:
        raise IsADirectoryError(f"{out / taken[0]} is a folder, and a file of that name is to be written; move it away")


def write_report(report: Report, out: Path) -> list[Path]:
    """Write `simulation.json` and `simulation.md` into the folder `out`, each whole or not at all; their paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in FILES[:2]]
    _write(paths[0], (json.dumps({"version": 1, **as_json(report)}, indent=1) + "\n").encode())
    _write(paths[1], markdown(report).encode())
    return paths


def write_figure(report: Report, out: Path) -> Path:
    """Write `simulation.png` into the folder `out`. Raises `NoMatplotlibError` where matplotlib is not installed."""
    path = out / FILES[2]
    content = draw(report)
    out.mkdir(parents=True, exist_ok=True)
    _write(path, content)
    return path


def as_json(report: Report) -> dict[str, Any]:
    """Plain containers; numbers with six decimals, which hides no difference that means something."""
    rounded = _rounded(asdict(report))
    assert isinstance(rounded, dict)
    return rounded


def markdown(report: Report) -> str:
    """The settings in a sentence, a row a policy, and the attainment of each tier."""
    setting = report.setting
    decisions = "measured" if setting.decision_ms is None else f"taken as {setting.decision_ms:g} ms"
    tiers = list(dict.fromkeys(tier for result in report.results for tier in result.tiers))
    lines = [
        "# Simulated scheduling policies",
        "",
        f"Trace `{report.trace}`: {report.requests} requests, {report.rate:.1f}/s, where the engine's capacity is "
        f"{report.capacity:.1f}/s. Latencies: {report.profile} ({report.hardware or 'hardware not named'}, "
        f"{report.date or 'no date'}), true times {setting.drift:g} times those. Decoding {setting.decode_ms:g} ms on "
        f"{setting.decode_threads} threads; {setting.queue_limit} requests in flight at most; seed {setting.seed}; "
        f"the cost of decisions is {decisions} and charged.",
        "",
        "| policy | on time | effective AP.50 | AP.50 of answers | late | dropped | goodput/s | mean batch | busy | "
        "wait p99, ms | decision p50 / p99, ms |",
        "|" + "---|" * 11,
    ]
    for r in report.results:
        dropped = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in r.dropped.items()) or "0"
        answered = "-" if r.answered_ap is None else f"{r.answered_ap:.3f}"
        lines.append(
            f"| {r.policy} | {r.attainment:.1%} | {r.effective_ap:.3f} | {answered} | {r.late} | {dropped} | "
            f"{r.goodput_per_s:.1f} | {r.mean_batch:.2f} | {r.utilisation:.0%} | {r.wait_ms_p99:.0f} | "
            f"{r.decision_ms_p50:.3f} / {r.decision_ms_p99:.3f} |"
        )
    lines += ["", "On time, by tier:", "", "| policy | " + " | ".join(t or "none" for t in tiers) + " |"]
    lines.append("|" + "---|" * (1 + len(tiers)))
    for r in report.results:
        cells = " | ".join(f"{r.tiers[t].attainment:.1%}" if t in r.tiers else "-" for t in tiers)
        lines.append(f"| {r.policy} | {cells} |")
    lines += [
        "",
        "Effective AP.50 is the mean over all requests of the AP.50 of the arm that answered, 0 where the answer was "
        "late or there was none.",
    ]
    return "\n".join(lines) + "\n"


def draw(report: Report) -> bytes:
    """A PNG: attainment and effective AP.50 of each policy, as bars. Raises `NoMatplotlibError`."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise NoMatplotlibError(
            "the figure needs matplotlib, which comes with the `bench` extra: pip install -e '.[bench]'"
        ) from None
    figure = Figure(figsize=(max(5.0, 1.2 + 1.1 * len(report.results)), 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    series = {
        "attainment": [result.attainment for result in report.results],
        "effective AP.50": [result.effective_ap for result in report.results],
    }
    for k, (label, values) in enumerate(series.items()):
        at = [i + (k - 0.5) * 0.38 for i in range(len(values))]
        bars = axes.bar(at, values, 0.36, label=label, color=_COLOURS[label])
        axes.bar_label(bars, [f"{value:.3f}" for value in values], fontsize=7, padding=1)
    axes.set_xticks(range(len(report.results)), [result.policy for result in report.results])
    axes.set_ylim(0, 1.12)
    axes.set_title(f"{report.requests} requests at {report.rate:.1f}/s; capacity {report.capacity:.1f}/s", fontsize=9)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def mean_rate(times: Sequence[float]) -> float:
    """Arrivals a second between the first and the last of `times`; 0 where they do not span any time."""
    span = times[-1] - times[0]
    return (len(times) - 1) / span if span > 0 else 0.0


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def _write(path: Path, content: bytes) -> None:
    """Written beside the target, then renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
