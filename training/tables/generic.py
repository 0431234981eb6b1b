"""Table 8: FPN against AutoFAE in three detectors of torchvision, on COCO or data in its format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from training.files import write_bytes, write_json
from training.generic.command import run_cell
from training.tables import paper

TITLE = "AutoFAE against FPN on generic objects"
# Pictures' shorter and longer side, width, epochs, pictures a step, backbone.
_SIZES: dict[str, dict[str, Any]] = {
    "smoke": {"min_size": 64, "max_size": 96, "width": 16, "epochs": 1, "batch": 2, "backbone": "resnet18"},
    "small": {"min_size": 256, "max_size": 320, "width": 64, "epochs": 2, "batch": 8, "backbone": "resnet18"},
    "paper": {"min_size": 800, "max_size": 1333, "width": 256, "epochs": 12, "batch": 16, "backbone": "resnet50"},
}


def run_table(
    data: Path, budget: str, out: Path, genotypes: Path | None, imagenet: Path | None, device: str | None,
    threads: int = 0, seed: int = 0,
) -> str:  # fmt: skip
    """Train and evaluate all six cells, resuming, and write `table-8.json` and `table-8.md`. Returns Markdown.

    data: holds train2017, val2017 and annotations/instances_{train,val}2017.json; threads: of the CPU, 0 leaves torch's
    default. Raises FileNotFoundError where a part of the data is missing, and what `python -m training generic` raises.
    """
    files: dict[str, Any] = {
        "train_images": data / "train2017", "val_images": data / "val2017",
        "train_json": data / "annotations" / "instances_train2017.json",
        "val_json": data / "annotations" / "instances_val2017.json",
    }  # fmt: skip
    for path in files.values():
        if not path.exists():
            raise FileNotFoundError(f"no {path}: table 8 takes COCO's own folders below --data")
    rows = []
    for (detector, neck), printed in paper.GENERIC.items():
        typer.echo(f"{detector} with {neck}")
        kept = genotypes / "autofae.json" if genotypes and neck == "autofae" else None
        result = run_cell(
            detector=detector, neck=neck, out=out / f"{detector}-{neck}", imagenet=imagenet, genotype=kept, lr=None,
            seed=seed, device=device, threads=threads, workers=0 if budget == "smoke" else 2, **files, **_SIZES[budget],
        )  # fmt: skip
        ours = {"ap": result["AP"], "ap50": result["AP.50"], "ap75": result["AP.75"]}
        rows.append({"name": f"{detector} {neck}", "paper": dict(printed), "ours": ours, "run": result})
    write_json(out / "table-8.json", {"table": 8, "title": TITLE, "budget": budget, "data": data.name, "rows": rows})
    text = markdown(rows, budget, data.name)
    write_bytes(out / "table-8.md", text.encode())
    return text


def markdown(rows: list[dict[str, Any]], budget: str, data: str) -> str:
    """The table for people, percent."""
    lines = [
        f"# Table 8: {TITLE}",
        "",
        f"Budget `{budget}`, data `{data}`, {rows[0]['run']['hardware']}. The paper's values are of COCO and of its "
        "own training.",
        "",
        "| detector and neck | AP | AP.50 | AP.75 | paper AP | AP.50 | AP.75 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        ours = ["-" if v is None else f"{100 * v:.1f}" for v in row["ours"].values()]
        printed = [f"{v:.1f}" for v in row["paper"].values()]
        lines.append(f"| {row['name']} | " + " | ".join([*ours, *printed]) + " |")
    return "\n".join(lines) + "\n"
