"""Figures of files that are damaged, or hold what cannot be: a sentence with the file's name, no picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.figures import distribution, front, roc
from training.models.genotype import default_genotype, parse

BOX = {"image_id": 1, "bbox": [0, 0, 3, 3]}
PICTURE = {"id": 1, "width": 10, "height": 10}


@pytest.mark.parametrize(
    ("pictures", "boxes"),
    [
        ([PICTURE], [1]),
        ([PICTURE | {"width": 0}], [BOX]),
        ([PICTURE], [BOX | {"bbox": [0, 0, float("inf"), 3]}]),
        ([PICTURE], [BOX | {"bbox": [0, 0, float("nan"), 3]}]),
    ],
)
def test_coco_annotations(tmp_path: Path, pictures: list[Any], boxes: list[Any]) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"images": pictures, "annotations": boxes}))
    with pytest.raises(ValueError, match=r"c\.json: expected `images`"):
        distribution.read_all([], [str(file)], [])


@pytest.mark.parametrize(
    ("wh", "image"),
    [([[0.1, 0.1]], [-3]), ([[0.1, 0.1]], [2]), ([[0.1, 0.1]] * 3, [1]), ([[0.1, np.inf]], [1])],
)
def test_relative_boxes(tmp_path: Path, wh: list[list[float]], image: list[int]) -> None:
    file = tmp_path / "b.npz"
    np.savez(file, a_wh=np.array(wh), a_image=np.array(image), a_images=np.int64(2))
    with pytest.raises(ValueError, match=r"b\.npz: each box of 'a' needs"):
        distribution.read_all([], [], [f"{file}:a"])


@pytest.mark.parametrize("content", [b"PK\x03\x04cut off", b"", b"\x93NUMPY"])
def test_a_file_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "b.npz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"b\.npz has no boxes"):
        distribution.read_all([], [], [f"{file}:a"])


@pytest.mark.parametrize(
    "row",
    [
        {"source": "a", "curve": 3},
        {"source": "a", "false_positives": [-5, 1], "discrete": [0.1, 0.2], "continuous": [0.1, 0.2]},
        {"source": "a", "false_positives": [float("nan")], "discrete": [0.1], "continuous": [0.1]},
    ],
)
def test_fddb_curves(tmp_path: Path, row: dict[str, Any]) -> None:
    (tmp_path / "q.json").write_text(json.dumps({"rows": [row]}))
    with pytest.raises(ValueError, match=r"q\.json is not an FDDB evaluation"):
        roc.read_rocs([tmp_path / "q.json"])


@pytest.mark.parametrize("wrong", [{"ap50": float("nan")}, {"ap": 37.1}, {"ms_median": float("inf")}])
def test_points_of_a_front(tmp_path: Path, wrong: dict[str, float]) -> None:
    point = {"detector": "a", "ours": True, "long_side": 640, "ap50": 0.5, "ap": 0.2, "ms_median": 9.0, **wrong}
    head = {"data": "d", "split": "dev", "photos": 1, "threads": 1, "hardware": {}}
    (tmp_path / "r.json").write_text(json.dumps({**head, "rows": [point]}))
    with pytest.raises(ValueError, match=rf"r\.json is not .*rows\.0\.{next(iter(wrong))}"):
        front.read_results([tmp_path / "r.json"])


def test_a_genotype_with_numbers_or_operations_that_are_none() -> None:
    text = default_genotype("autofae").model_dump_json()
    content = json.loads(text)
    content["top_down"][2]["beta"] = [float("nan"), 1.0]
    with pytest.raises(ValueError, match=r"top_down\.2\.beta\.0"):
        parse(json.dumps(content))
    content = json.loads(text)
    content["enhancement"][0]["nodes"][0]["operation"] = "conv2x2"  # which would shift the map
    with pytest.raises(ValueError, match=r"enhancement\.0\.nodes\.0\.operation"):
        parse(json.dumps(content))
