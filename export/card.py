"""The model card: a page for people, made of the manifest and of measured reports."""

from __future__ import annotations

from typing import Any

from service.repository.manifest import Manifest


def render_card(manifest: Manifest, report: dict[str, Any] | None, failures: list[str]) -> str:
    """Markdown. report: what `python -m training evaluate --out` wrote; failures: sentences, from looking at errors."""
    shape, made = manifest.architecture, manifest.provenance
    lines = [
        f"# {manifest.title}",
        "",
        f"Backbone {shape.backbone}, neck {shape.neck}, {shape.head_convs} head convolution(s), "
        f"{shape.channels} channels; "
        f"{shape.parameters / 1e6:.1f} M parameters, {shape.gmacs_vga:.1f} G multiply-accumulates at 480x640.",
        "",
        "## Files",
        "",
        "| variant | file | precision | size |",
        "|---|---|---|---|",
    ]
    lines += [f"| {f.variant} | `{f.path}` | {f.precision} | {f.size_bytes / 2**20:.1f} MiB |" for f in manifest.files]
    lines += ["", "## Training", ""]
    lines += [
        f"- Recipe `{made.recipe}` (`training/recipes.py`), seed {made.seed}, "
        + ("from random weights." if not made.stages else "from the weights of the stage before it:"),
        *[f"  - `{s.recipe}`: {s.images:,} crops, {s.hours:.2f} hours" for s in made.stages],
        f"- Data: {made.data}.",
        f"- {made.images_seen:,} crops in {made.train_hours:.2f} hours on {made.hardware}; finished {made.finished}.",
        "",
        "## Accuracy",
        "",
        "| variant | data | long side | AP.50 | AP.50:.95 |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.variant} | {row.dataset}/{row.split} | {row.long_side} | {row.ap50:.4f} | {row.ap:.4f} |"
        for row in manifest.accuracy
    ]
    if manifest.accuracy:
        lines += ["", f"Protocol: {manifest.accuracy[0].protocol}. Measured by `python -m export accuracy`."]
    if report and report.get("by_size"):
        lines += ["", "By size of the face:", "", "| faces | number | AP.50 | AP.50:.95 |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {score['faces']} | {_number(score['ap50'])} | {_number(score['ap'])} |"
            for name, score in report["by_size"].items()
        ]
    lines += ["", "## Known failures", "", *[f"- {sentence}" for sentence in failures]]
    lines += [
        "",
        "## Use",
        "",
        "Finds faces, and says nothing of whose they are. Accuracy was not measured by age, sex or skin colour; "
        "measure it on your own pictures before you rely on it.",
        "",
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
