"""The report on NMS in graphs: what it counts, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from export.__main__ import app
from export.member import save_onnx
from export.nms import DEFAULT_ITERATIONS
from export.nms_report import TRIED, Found, convergence, gpu_cost, mosaic, summary
from export.onnx_graph import export_onnx
from service.engines.cuda import CudaDevice
from service.repository.manifest import Thresholds
from tests.export.test_nms import chain
from training.models.detector import Detector

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def photos(crowd: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos in WIDER's layout, one with sixteen faces and four with fewer."""
    root = tmp_path_factory.mktemp("data")
    (root / "dev" / "images").mkdir(parents=True)
    (root / "split").mkdir()
    lines = []
    for name, faces in (("few.png", 1), ("most.png", 16), ("some.png", 2), ("more.png", 3), ("none.png", 0)):
        side = 256 * max(1, int(faces**0.5))
        Image.fromarray(crowd[:side, :side]).save(root / "dev" / "images" / name)
        lines += [name, str(faces), *["10 10 30 40 0 0 0 0 0 0"] * faces] + ["0 0 0 0 0 0 0 0 0 0"] * (not faces)
    (root / "split" / "dev_bbx_gt.txt").write_text("\n".join(lines) + "\n")
    return root


def test_convergence_of_a_chain_by_hand() -> None:
    boxes, scores = chain(9)
    found = convergence(Found(boxes, scores), Thresholds())
    assert (found.candidates, found.kept, found.needed, found.equal) == (9, 5, 8, True)
    assert [found.extra[count] for count in TRIED] == [3, 2, 1, 0, 0, 0, 0]
    assert not any(found.missing.values())
    longer = convergence(Found(chain(200)[0], np.where(np.arange(2000) < 9, scores[0], 0.01).astype(np.float32)),
                         Thresholds())  # fmt: skip
    assert (longer.needed, longer.needed_with_all) == (8, 199)
    empty = convergence(Found(boxes, np.zeros_like(scores)), Thresholds())
    assert (empty.candidates, empty.kept, empty.needed, empty.equal) == (0, 0, 0, True)
    row = summary("made", 640, [found, longer, empty])
    assert row.needed == {0: 1, 8: 2}
    assert (row.needed_max, row.needed_with_all_max, row.unequal) == (8, 199, 0)
    short = [(one.iterations, one.pictures, one.extra) for one in row.short]
    assert short[:4] == [(2, 2, 6), (4, 2, 4), (6, 2, 2), (8, 0, 0)]


def test_mosaics_hold_every_picture() -> None:
    pictures = [np.full((50, 80, 3), value, np.uint8) for value in (10, 20, 30, 40)]
    made = mosaic(pictures, 2, 64)
    assert made.shape == (64, 64, 3)
    assert [int(made[y, x, 0]) for y, x in ((5, 5), (5, 60), (60, 5), (60, 60))] == [10, 20, 30, 40]


def test_the_command_reports_on_a_checkpoint_and_on_its_export(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    run = CliRunner()
    models, out = tmp_path / "models", tmp_path / "nms.json"
    made = run.invoke(app, ["onnx", str(checkpoint), "--member", "tiny", "--repository", str(models)])
    assert made.exit_code == 0, made.output
    base = ["nms", "--data", str(photos), "--long-sides", "320", "--photos", "4", "--repository", str(models)]
    done = run.invoke(app, [*base, "tiny", str(checkpoint), "--out", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert report["iterations"] == DEFAULT_ITERATIONS
    assert report["scenes"] == 5  # four photos and a mosaic
    assert [row["source"] for row in report["rows"]] == ["tiny", "last"]
    for row in report["rows"]:
        assert row["pictures"] == sum(row["needed"].values()) == 5
        assert row["unequal"] == 0
        assert 2 <= row["needed_max"] <= row["needed_with_all_max"]
        assert row["kept_max"] <= row["candidates_max"] <= 2000
        assert row["short"][0]["extra"] >= row["short"][-1]["extra"]
    assert report["cost"]["chosen_ms"] > 0
    assert "iterations needed" in done.output
    assert bool(report["gpu_cost"]) != bool(report["gpu_absent"])
    if report["gpu_absent"]:
        assert f"not timed on a GPU: {report['gpu_absent']}" in done.output


def test_a_gpu_that_cannot_be_timed_is_said_and_never_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Found(np.array([[0, 0, 9, 9]] * 2000, np.float32), np.linspace(0.9, 0.1, 2000, dtype=np.float32))
    monkeypatch.setattr("service.engines.cuda.device", lambda: CudaDevice("Drawn GPU", "9.0", 1))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "has no CUDAExecutionProvider" in gpu_cost(found, Thresholds())["gpu_absent"]
    # Built with it, and without the libraries or the device that it needs.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: FellBack())
    assert "could not start its CUDAExecutionProvider" in gpu_cost(found, Thresholds())["gpu_absent"]


class FellBack:
    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_what_is_missing_is_said(photos: Path, tmp_path: Path, detector: Detector) -> None:
    plain = tmp_path / "plain.onnx"
    save_onnx(export_onnx(detector, Thresholds(), "plain"), plain)
    for arguments, sentence in (
        ([str(tmp_path / "absent.onnx")], "there is no file"),
        ([str(plain)], "does not name its candidates"),
        (["d9"], "d9/manifest.json"),
        (["d0", "--long-sides", "wide"], "--long-sides"),
        (["d0", "--splits", "other"], "other"),
    ):
        done = CliRunner().invoke(app, ["nms", "--data", str(photos), *arguments])
        assert done.exit_code == 2
        assert sentence in done.output
