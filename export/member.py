"""A member's folder in the repository: build its manifest from what was exported, write it atomically."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx

from service.repository.manifest import (
    MANIFEST_NAME,
    Accuracy,
    InputSize,
    Manifest,
    ModelFile,
    Precision,
    Provenance,
    Stage,
)
from service.repository.store import sha256_of

LONG_SIDES = (256, 320, 480, 640, 960)


def input_sizes(long_sides: tuple[int, ...] = LONG_SIDES) -> tuple[InputSize, ...]:
    """For each long side L: L x L, and 3/4 L x L both ways, rounded up to multiples of 32."""
    sizes = []
    for side in long_sides:
        short = -(-side * 3 // 4 // 32) * 32
        sizes += [(short, side), (side, short), (side, side)]
    return tuple(InputSize(height=h, width=w) for h, w in sizes)


def describe_file(path: Path, variant: str, precision: Precision, nms: str, opset: int) -> ModelFile:
    """The manifest's entry of a file as it lies on disk."""
    return ModelFile.model_validate(
        {
            "variant": variant, "path": path.name, "sha256": sha256_of(path), "size_bytes": path.stat().st_size,
            "precision": precision, "weights_precision": "int8" if precision == "int8" else "fp16",
            "nms": nms, "opset": opset,
        }
    )  # fmt: skip


def provenance_of(
    content: dict[str, Any], data: str, hardware: str, finished: str, checkpoint_sha256: str = ""
) -> Provenance:
    """How a checkpoint's weights came to be, the stages before its own run included. finished: ISO 8601 date."""
    config, progress = content["config"], content["progress"]
    own = {"recipe": config["recipe"], "images": progress["images"], "seconds": progress["seconds"]}
    past = [*content.get("stages", []), own]
    stages = tuple(
        Stage(recipe=s["recipe"], images=s["images"], hours=round(s["seconds"] / 3600, 2)) for s in past
    )  # fmt: skip
    return Provenance(
        recipe=config["recipe"], data=data, images_seen=sum(s.images for s in stages), seed=config["seed"],
        hardware=hardware, train_hours=round(sum(s["seconds"] for s in past) / 3600, 2), finished=finished,
        stages=stages if len(stages) > 1 else (), checkpoint_sha256=checkpoint_sha256,
    )  # fmt: skip


def with_file(manifest: Manifest, file: ModelFile) -> Manifest:
    """Add or replace a variant; accuracy and plans of the file that it replaces are dropped."""
    files = tuple(f for f in manifest.files if f.variant != file.variant)
    rows = tuple(row for row in manifest.accuracy if row.variant != file.variant)
    plans = tuple(p for p in manifest.plans if p.variant != file.variant or p.model_sha256 == file.sha256)
    return _checked(manifest, files=(*files, file), accuracy=rows, plans=plans)


def with_accuracy(manifest: Manifest, rows: tuple[Accuracy, ...]) -> Manifest:
    """Add rows, replacing older ones of the same variant, data and long side."""
    new = {_key(row) for row in rows}
    kept = tuple(row for row in manifest.accuracy if _key(row) not in new)
    ordered = sorted((*kept, *rows), key=lambda row: (row.variant, row.dataset, row.split, row.long_side))
    return _checked(manifest, accuracy=tuple(ordered))


def rows_of_benchmark(table: Any, manifest: Manifest) -> tuple[Accuracy, ...]:
    """The rows of a `make bench-accuracy` table that are of the member's variants and input sizes.

    Raises ValueError where it has none, or is no such table.
    """
    sides = {size.long_side for size in manifest.input_sizes}
    names = {file.variant for file in manifest.files}
    try:
        rows = tuple(
            Accuracy(
                variant=row["detector"], dataset=table["data"], split=table["split"], protocol=table["protocol"],
                long_side=row["long_side"], ap50=round(row["ap50"], 4), ap=round(row["ap"], 4),
            )
            for row in table["rows"]
            if row["ours"] and row["detector"] in names and row["long_side"] in sides
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a table of `make bench-accuracy`: {error}") from error
    if not rows:
        raise ValueError(f"the table has no row of {', '.join(sorted(names))}")
    return rows


def _key(row: Accuracy) -> tuple[str, str, str, int]:
    return row.variant, row.dataset, row.split, row.long_side


def _checked(manifest: Manifest, **changes: object) -> Manifest:
    return Manifest.model_validate(manifest.model_copy(update=changes).model_dump())


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write `manifest.json` atomically and return its path."""
    path = folder / MANIFEST_NAME
    write_atomically(path, (manifest.model_dump_json(indent=2) + "\n").encode())
    return path


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the target, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(path)


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write an ONNX file atomically."""
    write_atomically(path, model.SerializeToString())
