"""Predictions as text: the format, the way there and back, resuming, and scoring anybody's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from service.engines.base import Detections
from tests.evaluation.test_official import write_mat
from tests.evaluation.test_sources import constant_graph, write_split
from training.data.cache import load_picture
from training.evaluation.command import evaluate_command, score_submission_command
from training.evaluation.detections import read_split, run_source, upright_size
from training.evaluation.submission import (
    SubmissionFolder,
    check_names,
    format_submission,
    parse_submission,
    read_submission,
    submission_path,
    whole_pixels,
)


class Photo:
    def __init__(self, name: str) -> None:
        self.name = name


def faces(*rows: tuple[float, ...]) -> Detections:
    table = np.array(rows, dtype=np.float32).reshape(-1, 5)
    return Detections(table[:, :4], table[:, 4])


def invoke(command: object, *arguments: object) -> tuple[int, str]:
    app = Typer()
    app.command()(command)  # type: ignore[type-var]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_the_format() -> None:
    text = format_submission("0--Parade/0_Parade_1.jpg", faces((10, 20, 14.5, 29.25, 0.5), (1.5, 2, 3.5, 5, 0.75)))
    assert text == "0_Parade_1\n2\n1.5 2 2 3 0.75\n10 20 4.5 9.25 0.5\n"
    assert format_submission("a/b.webp", faces()) == "b\n0\n"
    assert submission_path(Path("out"), "0--Parade/x.y.jpg") == Path("out/0--Parade/x.y.txt")


def test_there_and_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 2000, (200, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.uniform(0.3, 400, (200, 2)).astype(np.float32)], axis=1)
    scores = np.sort(rng.random(200).astype(np.float32))[::-1]
    (tmp_path / "x.txt").write_text(format_submission("x.jpg", Detections(boxes, scores)))
    back = parse_submission(tmp_path / "x.txt")
    np.testing.assert_allclose(back.boxes, boxes, atol=3e-6, rtol=1e-7)
    assert (back.scores == scores).all()
    assert not whole_pixels({"x": back})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x\n", "txt:2: expected how many"),
        ("x\nmany\n", "txt:2: expected how many"),
        ("x\n2\n1 2 3 4 0.5\n", "2 faces are announced, 1 lines"),
        ("x\n1\n1 2 3 4\n", "txt:3: expected `x y width"),
        ("x\n1\n1 2 3 4 nan\n", "not finite"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_submission(tmp_path / "x.txt")


def test_files_of_other_tools_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"0--Parade/x.jpg\r\n1.0\r\n10 20 30 40 0.9 \r\n\r\n")
    found = parse_submission(tmp_path / "x.txt")
    assert found.boxes.tolist() == [[10, 20, 40, 60]]
    assert whole_pixels({"x": found})
    assert not whole_pixels({})


def test_photos_must_have_a_file_each_and_their_own(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("x\n0\n")
    assert list(read_submission(tmp_path, [Photo("a/x.jpg")])) == ["a/x.jpg"]
    with pytest.raises(FileNotFoundError, match=r"1 of 2 .*y\.txt"):
        read_submission(tmp_path, [Photo("a/x.jpg"), Photo("a/y.jpg")])
    check_names([Photo("a/x.jpg"), Photo("b/x.jpg")])
    with pytest.raises(ValueError, match=r"a/x\.jpg and a/x\.png would share"):
        check_names([Photo("a/x.jpg"), Photo("a/x.png")])


class Counting:
    name, long_side, fingerprint = "counting", 320, "one"

    def __init__(self, stop_after: int = 99) -> None:
        self.calls, self._stop_after = 0, stop_after

    def __call__(self, pixels: NDArray[np.uint8]) -> Detections:
        if self.calls == self._stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        return faces((64, 64, 192, 192, 0.9))


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    write_split(tmp_path, tmp_path / "dev" / "images", tmp_path / "split" / "dev_bbx_gt.txt")
    photos, images = read_split(tmp_path, "dev")
    about = {"protocol": "vga"}

    def run(source: Counting) -> dict[str, Detections]:
        store = SubmissionFolder(tmp_path / "out", source, about, photos)
        return run_source(source, photos, images, warm_up=0, progress=False, store=store).found

    with pytest.raises(KeyboardInterrupt):
        run(Counting(stop_after=1))
    second = Counting()
    found = run(second)
    assert second.calls == 1
    assert found["event/one.jpg"].boxes.tolist() == [[64, 64, 192, 192]]
    again = Counting()
    store = SubmissionFolder(tmp_path / "out", again, about, photos)
    all_known = run_source(again, photos, images, progress=False, store=store)
    assert (again.calls, all_known.wall_seconds) == (0, [])
    assert all_known.sizes == {"event/one.jpg": (640, 480), "event/two.png": (320, 320)}


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    SubmissionFolder(tmp_path / "out", Counting(), {"protocol": "vga"}, [])
    SubmissionFolder(tmp_path / "out", Counting(), {"protocol": "vga"}, [])
    with pytest.raises(ValueError, match="another run"):
        SubmissionFolder(tmp_path / "out", Counting(), {"protocol": "original"}, [])
    other = Counting()
    other.fingerprint = "two"
    with pytest.raises(ValueError, match="another run"):
        SubmissionFolder(tmp_path / "out", other, {"protocol": "vga"}, [])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="not empty"):
        SubmissionFolder(tmp_path / "mine", Counting(), {}, [])
    (tmp_path / "out" / "source.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        SubmissionFolder(tmp_path / "out", Counting(), {"protocol": "vga"}, [])


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_sizes_by_the_header_are_those_of_the_decoded_picture(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 20)).save(tmp_path / "x.jpg", exif=exif)
    height, width = load_picture(tmp_path / "x.jpg").shape[:2]
    assert upright_size(tmp_path / "x.jpg") == (width, height)


def test_what_evaluate_writes_scores_the_same(tmp_path: Path) -> None:
    annotations = tmp_path / "wider_face_split" / "wider_face_val_bbx_gt.txt"
    images = tmp_path / "WIDER_val" / "images"
    write_split(tmp_path, images, annotations)
    (images / "event" / "two.png").rename(images / "event" / "two.jpg")
    annotations.write_text(annotations.read_text().replace("two.png", "two.jpg"))
    for name in ("easy", "medium", "hard"):
        write_mat(tmp_path / f"wider_{name}_val.mat", {"one": [1], "two": [1, 2]})
    graph, out = constant_graph(tmp_path / "d0.onnx"), tmp_path / "predictions"
    common = ["--data", tmp_path, "--split", "val"]
    code, output = invoke(
        evaluate_command, graph, *common, "--long-side", 320, "--submission", out, "--out", tmp_path / "a.json"
    )
    assert code == 0, output
    # At 320 pixels, photo one is twice as large as what the graph sees.
    assert (out / "event" / "one.txt").read_text() == (
        "one\n2\n64 64 128 128 0.899999976\n320 128 128 128 0.600000024\n"
    )
    code, output = invoke(
        score_submission_command, out, *common, "--official", tmp_path, "--out", tmp_path / "b.json"
    )  # fmt: skip
    assert code == 0, output
    first, second = (
        json.loads((tmp_path / "a.json").read_text())["rows"][0],
        json.loads((tmp_path / "b.json").read_text()),
    )
    for key in ("faces", "ignored", "ap50", "ap", "recall50", "by_size", "best", "detections"):
        assert first[key] == second[key]
    assert second["official"]["hard"] == {"ap50": 1.0, "ap": 1.0, "faces": 3}
    assert "whole pixels" in output
    # The official files alone are enough: no photo, no annotation in text.
    code, output = invoke(score_submission_command, out, "--official", tmp_path, "--out", tmp_path / "c.json")
    assert code == 0, output
    assert json.loads((tmp_path / "c.json").read_text())["official"] == second["official"]
    # Run again, everything comes from the folder: nothing was timed.
    code, output = invoke(
        evaluate_command, graph, *common, "--long-side", 320, "--submission", out, "--out", tmp_path / "d.json"
    )
    assert code == 0, output
    assert json.loads((tmp_path / "d.json").read_text())["rows"][0]["ms"] is None


def test_several_sizes_get_folders_of_their_own(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_split(data, data / "dev" / "images", data / "split" / "dev_bbx_gt.txt")
    graph = constant_graph(tmp_path / "d0.onnx")
    code, output = invoke(
        evaluate_command, graph, "--data", data, "--long-side", 320, "--long-side", 640,
        "--submission", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, output
    assert (tmp_path / "out" / "d0-320" / "event" / "two.txt").is_file()
    assert (tmp_path / "out" / "d0-640" / "source.json").is_file()


def test_scoring_needs_something_to_score_against(tmp_path: Path) -> None:
    code, output = invoke(score_submission_command, tmp_path)
    assert code == 2
    assert "--data, --official" in output
