"""What is wrong with a command is said before any photo is shown to a detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from service.engines.base import Detections
from tests.evaluation.test_fddb import write_fddb
from tests.evaluation.test_official import write_mat
from tests.evaluation.test_sources import constant_graph, write_split
from training.__main__ import app
from training.evaluation.sources import OnnxSource, open_sources
from training.files import check_writable
from training.models.device import chosen_device


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Sizes of the pictures that a detector was shown."""
    sizes: list[tuple[int, ...]] = []

    def look(_source: OnnxSource, pixels: NDArray[np.uint8]) -> Detections:
        sizes.append(pixels.shape)
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    monkeypatch.setattr(OnnxSource, "__call__", look)
    return sizes


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    write_split(root, root / "dev" / "images", root / "split" / "dev_bbx_gt.txt")
    constant_graph(tmp_path / "d0.onnx")
    (tmp_path / "file").write_text("x")
    return root


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    return done.exit_code, " ".join(done.output.split())


@pytest.mark.parametrize(("out", "sentence"), [("", "is a folder"), ("file/x.json", "cannot be written")])
def test_a_report_that_cannot_be_written(
    data: Path, tmp_path: Path, shown: list[tuple[int, ...]], out: str, sentence: str
) -> None:
    folds = tmp_path / "fddb"
    write_fddb(folds)
    graph = tmp_path / "d0.onnx"
    for command, folder in (("evaluate", data), ("evaluate-fddb", folds)):
        code, text = run(command, graph, "--data", folder, "--long-side", 320, "--out", tmp_path / out)
        assert (code, sentence in text) == (2, True), text
    code, text = run("score-submission", tmp_path, "--data", data, "--out", tmp_path / out)
    assert (code, sentence in text) == (2, True), text
    assert shown == []


def test_a_figure_that_cannot_be_written(data: Path, tmp_path: Path, shown: list[tuple[int, ...]]) -> None:
    out = tmp_path / "file" / "x.png"
    for arguments in (
        ("precision-recall", tmp_path / "d0.onnx", "--data", data, "--long-side", 320),
        ("boxes", tmp_path / "d0.onnx", "--images", data, "--long-side", 320),
    ):
        code, text = run("figure", *arguments, "--out", out)
        assert (code, "cannot be written" in text) == (2, True), text
    assert shown == []


def test_official_subsets_of_other_photos(data: Path, tmp_path: Path, shown: list[tuple[int, ...]]) -> None:
    for name in ("easy", "medium", "hard"):
        write_mat(tmp_path / f"wider_{name}_val.mat", {"one": [1], "two": [1]})
    code, text = run("evaluate", tmp_path / "d0.onnx", "--data", data, "--long-side", 320, "--official", tmp_path)
    assert code == 2
    # The one is `event/one.jpg` in both, the other `event/two.png` here and `event/two.jpg` there.
    assert "1 of 2 photos are not in WIDER's official ground truth" in text
    assert "event/two.png" in text
    assert shown == []


def test_a_photo_that_is_annotated_twice(data: Path, tmp_path: Path, shown: list[tuple[int, ...]]) -> None:
    file = data / "split" / "dev_bbx_gt.txt"
    file.write_text(file.read_text() + "event/one.jpg\n0\n")
    code, text = run("evaluate", tmp_path / "d0.onnx", "--data", data, "--long-side", 320)
    assert code == 2
    assert "dev_bbx_gt.txt lists 'event/one.jpg' 2 times" in text
    folds = tmp_path / "fddb"
    write_fddb(folds)
    for kind in ("", "-ellipseList"):
        (folds / "FDDB-folds" / f"FDDB-fold-02{kind}.txt").write_text(
            (folds / "FDDB-folds" / f"FDDB-fold-01{kind}.txt").read_text()
        )
    code, text = run("evaluate-fddb", tmp_path / "d0.onnx", "--data", folds, "--long-side", 320)
    assert (code, "2 times" in text) == (2, True), text
    assert shown == []


@pytest.mark.parametrize("option", [("--limit", "-5"), ("--threads", "-1"), ("--threads", "1000000")])
def test_numbers_that_mean_nothing(
    data: Path, tmp_path: Path, shown: list[tuple[int, ...]], option: tuple[str, str]
) -> None:
    for command, folder in (("evaluate", data), ("evaluate-fddb", tmp_path)):
        code, text = run(command, tmp_path / "d0.onnx", "--data", folder, *option)
        assert (code, "Invalid value" in text) == (2, True), text
    assert shown == []


def test_a_device_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device(None).type == chosen_device("cpu").type == "cpu"
    for name, sentence in (("gpu", "there are cpu and cuda"), ("meta", "there are cpu"), ("cuda", "sees 0 GPUs")):
        with pytest.raises(ValueError, match=f"no device '{name}'.*{sentence}"):
            chosen_device(name)
    (tmp_path / "x.pt").write_bytes(b"looked at afterwards")
    with pytest.raises(ValueError, match="no device 'gpu'"):
        open_sources(tmp_path / "x.pt", 320, device="gpu")


def test_looking_makes_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "c.json")
    assert list(tmp_path.iterdir()) == []
