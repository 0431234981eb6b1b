"""The model card: a page for people, made of the manifest and of measured reports."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from service.repository.manifest import Manifest


class SizeScore(BaseModel):
    """Of the faces of one size; AP is None where there are none."""

    faces: int
    ap50: float | None
    ap: float | None


class SizeReport(BaseModel):
    """What the card takes of a report of `python -m export accuracy --report`."""

    by_size: dict[str, SizeScore] = {}


def render_card(manifest: Manifest, by_size: Mapping[str, SizeScore], failures: list[str]) -> str:
    """Markdown. by_size: empty where it was not measured; failures: sentences, from looking at errors."""
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
    if by_size:
        lines += ["", "By size of the face:", "", "| faces | number | AP.50 | AP.50:.95 |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {score.faces} | {_number(score.ap50)} | {_number(score.ap)} |"
            for name, score in by_size.items()
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
