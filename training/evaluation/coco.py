"""AP on COCO by COCO's own code (pycocotools), for the detectors that the paper compares on it (section 5.5).

Boxes are x, y, width, height here and nowhere else in the project, as COCO's files have them.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# In the library's order.
NUMBERS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip


@dataclass(frozen=True)
class CocoScores:
    """COCO's twelve numbers, each in 0..1, or None where no annotated object is of that kind.

    ap: mean over IoU 0.50:0.05:0.95; ap50, ap75: at one IoU; ap_small, ap_medium, ap_large: of objects under 32^2, up
    to 96^2 and above (area, pixels); ar1, ar10, ar100: recall, averaged over IoU, with that many detections a picture;
    ar_small, ar_medium, ar_large: the last one by size. images, detections: how many were scored.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    images: int
    detections: int


def coco_ap(
    annotations: Path | Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    images: Collection[int] | None = None,
) -> CocoScores:
    """Score detections of boxes against a COCO annotation file.

    annotations: `instances_*.json`, or its content; neither it nor `detections` is changed.
    detections: one mapping a box, with `image_id`, `category_id` (as in the annotations), `bbox` [x, y, width, height]
    in pixels and `score`.
    images: score these image ids alone; None takes all of the file.
    Raises FileNotFoundError, ImportError that says what to install, and ValueError that names what is wrong.
    """
    coco_class, evaluator_class = _library()
    content = _content(annotations)
    truth = coco_class()
    truth.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints its tables
        truth.createIndex()
    chosen = sorted(truth.getImgIds() if images is None else set(images))
    if unknown := set(chosen) - set(truth.getImgIds()):
        raise ValueError(f"image {min(unknown)} was asked for, and the annotations do not have it")
    rows = [_checked(at, row, truth.imgs, truth.cats) for at, row in enumerate(detections)]
    taken = set(chosen)
    rows = [row for row in rows if row["image_id"] in taken]
    with contextlib.redirect_stdout(io.StringIO()):
        # `loadRes` does not take an empty list.
        found = truth.loadRes(rows) if rows else _nothing_found(coco_class, content)
        evaluator = evaluator_class(truth, found, "bbox")
        evaluator.params.imgIds = chosen
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    # Minus one is the library's "there was nothing of the kind".
    numbers = [None if value < 0 else float(value) for value in evaluator.stats]
    return CocoScores(**dict(zip(NUMBERS, numbers, strict=True)), images=len(chosen), detections=len(rows))


def _library() -> tuple[Any, Any]:
    try:
        coco: Any = importlib.import_module("pycocotools.coco")
        evaluation: Any = importlib.import_module("pycocotools.cocoeval")
    except ImportError as error:
        raise ImportError("COCO's AP needs pycocotools: pip install pycocotools") from error
    return coco.COCO, evaluation.COCOeval


def _content(annotations: Path | Mapping[str, Any]) -> dict[str, Any]:
    """The content of an annotation file, free to be written to: the library adds fields to it."""
    if isinstance(annotations, Path):
        if not annotations.is_file():
            raise FileNotFoundError(f"no {annotations}: expected COCO annotations, such as instances_val2017.json")
        try:
            content = json.loads(annotations.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{annotations} is not JSON: {error}") from error
        name = str(annotations)
    else:
        content, name = copy.deepcopy(dict(annotations)), "the annotations"
    missing = [key for key in ("images", "annotations", "categories") if key not in content]
    if missing:
        raise ValueError(f"{name}: no {', '.join(missing)}; a COCO annotation file has images, annotations, categories")
    _complete(name, content)
    return dict(content)


def _complete(name: str, content: dict[str, Any]) -> None:
    """Fill in what converted files leave out and the library takes for granted: id, area and iscrowd."""
    for at, row in enumerate(content["annotations"]):
        if "bbox" not in row or "image_id" not in row or "category_id" not in row:
            raise ValueError(f"{name}: annotation {at} lacks one of bbox, image_id, category_id")
        # An id of zero counts as "not matched" inside the library, and the object as missed.
        row.setdefault("id", at + 1)
        if not isinstance(row.get("area"), (int, float)):
            row["area"] = row["bbox"][2] * row["bbox"][3]
        row.setdefault("iscrowd", 0)
    ids = [row["id"] for row in content["annotations"]]
    if len(set(ids)) != len(ids) or 0 in ids:
        for at, row in enumerate(content["annotations"]):
            row["id"] = at + 1


def _checked(at: int, row: Mapping[str, Any], images: Collection[int], categories: Collection[int]) -> dict[str, Any]:
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in row]
    if missing:
        raise ValueError(f"detection {at} has no {', '.join(missing)}")
    if row["image_id"] not in images:
        raise ValueError(f"detection {at} is of image {row['image_id']!r}, which the annotations do not have")
    if row["category_id"] not in categories:
        raise ValueError(f"detection {at} is of category {row['category_id']!r}, which the annotations do not have")
    box = [float(value) for value in row["bbox"]]
    score = float(row["score"])
    if len(box) != 4 or not all(math.isfinite(value) for value in (*box, score)):
        raise ValueError(f"detection {at}: expected bbox as four numbers and a score, all finite")
    return {"image_id": row["image_id"], "category_id": row["category_id"], "bbox": box, "score": score}


def _nothing_found(coco_class: Any, content: Mapping[str, Any]) -> Any:
    empty = coco_class()
    empty.dataset = {"images": content["images"], "categories": content["categories"], "annotations": []}
    empty.createIndex()
    return empty
