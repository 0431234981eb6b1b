"""The official subsets: read from .mat files made here in the official form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import savemat
from typer import Typer
from typer.testing import CliRunner

from tests.evaluation.test_sources import constant_graph, write_split
from training.evaluation.command import evaluate_command
from training.evaluation.official import read_subset

ROWS = {"one": [[64, 64, 128, 128], [320, 128, 128, 128]], "two": [[32, 32, 64, 64], [160, 64, 64, 64]]}


def column(items: list[object]) -> NDArray[np.object_]:
    """A MATLAB cell array of n x 1."""
    cells = np.empty((len(items), 1), dtype=object)
    for index, item in enumerate(items):
        cells[index, 0] = item
    return cells


def write_mat(path: Path, counted: dict[str, list[int]]) -> None:
    files = column(["one", "two"])
    boxes = column([np.array(rows, dtype=np.float64) for rows in ROWS.values()])
    lists = column([np.array(counted[name], dtype=np.float64).reshape(-1, 1) for name in ROWS])
    content: dict[str, list[object]] = {
        "event_list": ["event"],
        "file_list": [files],
        "face_bbx_list": [boxes],
        "gt_list": [lists],
    }
    savemat(path, {key: column(value) for key, value in content.items()})


def test_a_subset_counts_the_listed_faces(tmp_path: Path) -> None:
    write_mat(tmp_path / "easy.mat", {"one": [2], "two": []})
    one, two = read_subset(tmp_path / "easy.mat")
    assert (one.name, two.name) == ("event/one.jpg", "event/two.jpg")
    assert one.boxes.tolist() == [[64, 64, 192, 192], [320, 128, 448, 256]]
    assert one.ignore.tolist() == [True, False]
    assert two.ignore.tolist() == [True, True]


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"hard\.mat"):
        read_subset(tmp_path / "hard.mat")
    savemat(tmp_path / "other.mat", {"x": np.zeros(3)})
    with pytest.raises(ValueError, match=r"other\.mat"):
        read_subset(tmp_path / "other.mat")
    (tmp_path / "text.mat").write_text("nothing")
    with pytest.raises(ValueError, match=r"text\.mat"):
        read_subset(tmp_path / "text.mat")


def test_the_command_reports_all_three(tmp_path: Path) -> None:
    annotations = tmp_path / "wider_face_split" / "wider_face_val_bbx_gt.txt"
    images = tmp_path / "WIDER_val" / "images"
    write_split(tmp_path, images, annotations)
    (images / "event" / "two.png").rename(images / "event" / "two.jpg")
    annotations.write_text(annotations.read_text().replace("two.png", "two.jpg"))
    # The graph finds all four faces. Photo two's second face counts in `hard` alone; photo one's in none of `easy`.
    subsets = {"easy": ([], [1]), "medium": ([1, 2], [1]), "hard": ([1, 2], [1, 2])}
    for name, (one, two) in subsets.items():
        write_mat(tmp_path / f"wider_{name}_val.mat", {"one": one, "two": two})
    app = Typer()
    app.command()(evaluate_command)
    arguments = [
        str(constant_graph(tmp_path / "d0.onnx")),
        "--data",
        str(tmp_path),
        "--split",
        "val",
        "--long-side",
        "320",
    ]
    result = CliRunner().invoke(app, [*arguments, "--official", str(tmp_path), "--out", str(tmp_path / "o.json")])
    assert result.exit_code == 0, result.output
    assert "easy 1.0000, medium 1.0000, hard 1.0000" in result.output
    assert json.loads((tmp_path / "o.json").read_text())["rows"][0]["official"] == {"easy": 1, "medium": 1, "hard": 1}
