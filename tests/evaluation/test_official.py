"""The official subsets: read from .mat files made here in the official form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from scipy.io import savemat
from typer import Typer
from typer.testing import CliRunner

from service.engines.base import Detections
from tests.evaluation.test_sources import constant_graph, write_split
from training.evaluation.command import check_subsets, evaluate_command, official_scores
from training.evaluation.official import read_subset, read_subsets

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


def write_one(path: Path, name: str, boxes: ArrayLike, counted: ArrayLike) -> None:
    """One photo; the tables are saved in the types they have."""
    content: dict[str, list[object]] = {
        "event_list": ["event"],
        "file_list": [column([name])],
        "face_bbx_list": [column([np.asarray(boxes)])],
        "gt_list": [column([np.asarray(counted).reshape(-1, 1)])],
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
    assert "AP.50: easy 1.0000, medium 1.0000, hard 1.0000; AP: easy 1.0000, medium 1.0000, hard" in result.output
    assert json.loads((tmp_path / "o.json").read_text())["rows"][0]["official"] == {
        "easy": {"ap50": 1, "ap": 1, "faces": 1},
        "medium": {"ap50": 1, "ap": 1, "faces": 3},
        "hard": {"ap50": 1, "ap": 1, "faces": 4},
    }


def detections(*rows: tuple[float, ...]) -> Detections:
    table = np.array(rows, dtype=np.float32).reshape(-1, 5)
    return Detections(table[:, :4], table[:, 4])


def test_ap_of_the_subsets_by_hand(tmp_path: Path) -> None:
    # Photo one: face 1 is found exactly, face 2 not at all, and a stray ranks between. Photo two: face 1 is found by a
    # box of 55 x 65 pixels, borders included, of its 65 x 65 (IoU 0.846, a hit up to 0.80); face 2 twice, exactly.
    subsets = {"easy": ([1], []), "medium": ([1], [1]), "hard": ([1, 2], [1, 2])}
    for name, (one, two) in subsets.items():
        write_mat(tmp_path / f"wider_{name}_val.mat", {"one": one, "two": two})
    found = {
        "event/one.jpg": detections((64, 64, 192, 192, 1.0), (500, 300, 600, 400, 0.8)),
        "event/two.jpg": detections((32, 32, 86, 96, 0.6), (160, 64, 224, 128, 0.4), (160, 64, 224, 128, 0.0)),
    }
    scores = official_scores(found, read_subsets(tmp_path))
    # Easy, one face: found first of all. The box at 0.6 lies on an ignored face up to 0.80 and is a late stray then.
    assert scores["easy"] == {"ap50": 1.0, "ap": 1.0, "faces": 1}
    # Medium, two faces. Seven IoU: hit, stray, hit: 1/2 + 1/2 * 2/3. Three: the second face is not found, 1/2.
    assert scores["medium"]["ap50"] == pytest.approx(5 / 6)
    assert scores["medium"]["ap"] == pytest.approx((7 * 5 / 6 + 3 * 1 / 2) / 10)
    # Hard, four faces. Seven IoU: hit, stray, hit, hit, then the second hit on a face as a false positive:
    # precision 1, 2/3, 3/4 at recall 1/4, 1/2, 3/4, under the envelope 1, 3/4, 3/4. Three IoU: hit, stray, stray, hit.
    assert scores["hard"]["ap50"] == pytest.approx(1 / 4 + 1 / 4 * 3 / 4 + 1 / 4 * 3 / 4)
    assert scores["hard"]["ap"] == pytest.approx((7 * 5 / 8 + 3 * (1 / 4 + 1 / 4 * 1 / 2)) / 10)
    assert {name: score["faces"] for name, score in scores.items()} == {"easy": 1, "medium": 2, "hard": 4}
    photos = read_subset(tmp_path / "wider_easy_val.mat")
    check_subsets(read_subsets(tmp_path), photos[:1])
    with pytest.raises(ValueError, match=r"1 of 2 photos are not in WIDER's official ground truth.*'dev/other\.jpg'"):
        check_subsets(read_subsets(tmp_path), [photos[0], replace(photos[1], name="dev/other.jpg")])


def test_a_corner_is_x_plus_width(tmp_path: Path) -> None:
    # A face 9 pixels wide: with corners at x + width - 1, IoU with the exact box would be 81/100.
    write_one(tmp_path / "wider_hard_val.mat", "one", [[10, 10, 9, 9]], [1])
    scores = official_scores(
        {"event/one.jpg": detections((10, 10, 19, 19, 0.9))}, {"hard": read_subset(tmp_path / "wider_hard_val.mat")}
    )
    assert scores["hard"]["ap"] == 1.0


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float64])
def test_small_integers_do_not_overflow(tmp_path: Path, kind: type) -> None:
    # MATLAB keeps a table in the smallest type that holds it: 200 + 100 is not 44.
    write_one(tmp_path / "x.mat", "one", np.array([[200, 100, 100, 200]], dtype=kind), np.array([[1]], dtype=np.uint8))
    (photo,) = read_subset(tmp_path / "x.mat")
    assert photo.boxes.tolist() == [[200, 100, 300, 300]]
    assert photo.ignore.tolist() == [False]


@pytest.mark.parametrize("name", ["gig", "7_jpg", "pppp"])
def test_names_that_end_like_the_suffix_stay_whole(tmp_path: Path, name: str) -> None:
    # rstrip(".jpg") would make "gi", "7_" and nothing of them.
    write_one(tmp_path / "x.mat", name, [[1, 2, 3, 4]], [])
    (photo,) = read_subset(tmp_path / "x.mat")
    assert photo.name == f"event/{name}.jpg"
    assert photo.ignore.tolist() == [True]


def test_the_official_files_hold_the_published_numbers_of_faces() -> None:
    folder = Path(__file__).parents[2] / ".." / "shared" / "data" / "wider" / "eval_gt"
    if not folder.is_dir():
        pytest.skip("WIDER's ground-truth files are not here")
    subsets = read_subsets(folder)
    counts = {name: sum(int((~photo.ignore).sum()) for photo in photos) for name, photos in subsets.items()}
    assert counts == {"easy": 7211, "medium": 13319, "hard": 31958}
    assert {len(photos) for photos in subsets.values()} == {3226}
    # Whoever answers with all the boxes has found everything, but faces whose box is another one's, too.
    found = {photo.name: Detections(photo.boxes.astype(np.float32), np.ones(len(photo.boxes), np.float32))
             for photo in subsets["hard"]}  # fmt: skip
    scores = official_scores(found, subsets)
    assert all(score["ap"] > 0.999 for score in scores.values())
