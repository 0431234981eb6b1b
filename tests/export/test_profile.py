"""Latency with other detectors in the same run, and the picture of it."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from export import peers
from export.__main__ import app
from export.peers import find_peers, parse_peer
from export.profile import PeerRow, compared_sizes, profile_peers, resized, timing_photo
from export.profile_figure import Known, ap_of
from service.engines.base import Detections
from service.repository.manifest import InputSize
from service.simulation import profile as simulated
from tests.service.fake_model import write_fake_repository


class Fake:
    """A detector that remembers what it was shown."""

    fingerprint = "fake"
    shown: list[tuple[int, ...]] = []  # noqa: RUF012

    def __init__(self, path: Path, long_side: int, threads: int) -> None:
        self.name, self.long_side = path.stem, long_side

    def __call__(self, pixels: NDArray[np.uint8]) -> Detections:
        Fake.shown.append(pixels.shape)
        time.sleep(0.001)
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`profile` of a fake repository with one peer, `mine`."""
    monkeypatch.setitem(peers.KINDS, "fake", Fake)  # type: ignore[arg-type]
    monkeypatch.setattr(Fake, "shown", [])
    write_fake_repository(tmp_path / "models")
    (tmp_path / "some.onnx").touch()
    return [
        "profile", "--repository", str(tmp_path / "models"), "--out", str(tmp_path / "profile.json"), "--runs", "6",
        "--threads", "1", "--peer", f"mine={tmp_path / 'some.onnx'}:fake",
    ]  # fmt: skip


def table(**changes: Any) -> str:
    row = {"detector": "mine", "ours": False, "long_side": 128, "ap50": 0.75, "ap": 0.3, "ms_median": 1.0}
    return json.dumps(
        {"data": "drawn", "split": "dev", "photos": 9, "threads": 1, "hardware": {"cpu": "x"}, "rows": [row]} | changes
    )


def test_a_peer_is_timed_at_our_long_sides_and_drawn(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "accuracy.json").write_text(table())
    figure = tmp_path / "figure.png"
    more = ["--accuracy", str(tmp_path / "accuracy.json"), "--figure", str(figure)]
    result = CliRunner().invoke(app, [*arguments, *more])
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "profile.json").read_text())
    assert content["version"] == simulated.PROFILE_VERSION == 2
    assert len(content["rows"]) == 2 * 4  # variants, input sizes
    fields = ("detector", "long_side", "height", "width", "runs", "ap50")
    assert [[row[field] for field in fields] for row in content["peers"]] == [
        ["mine", 64, 64, 64, 6, None], ["mine", 128, 64, 128, 6, 0.75],
    ]  # fmt: skip
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in content["peers"] + content["rows"])
    assert Fake.shown == [(64, 64, 3)] * 8 + [(64, 128, 3)] * 8  # two to warm up, six timed
    with Image.open(io.BytesIO(figure.read_bytes())) as picture:
        assert picture.format == "PNG"
        colours = {colour for _, colour in picture.convert("RGB").getcolors(10**7) or []}
    assert {(0x0B, 0x6E, 0x4F), (0x77, 0x77, 0x77)} <= colours  # ours, and the other


def test_without_others_the_file_is_as_it_was(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, arguments[:-2])
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "profile.json").read_text())
    assert "peers" not in content
    assert {row["batch"] for row in content["rows"]} == {1}
    assert "d1         128x64 batch 1: p50" in result.output


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--figure", "x.jpg"], "must end in .png"),
        (["--accuracy", "nowhere.json"], "nowhere.json"),
        (["--peers", "nowhere"], "no folder nowhere"),
        (["--peer", "mine=nowhere.onnx:scrfd"], "no file nowhere.onnx"),
        (["--peer", "mine=x.onnx:yolo"], "no adapter 'yolo'; there are scrfd, yunet, ultralight"),
        (["--peer", "x.onnx"], "NAME=FILE:KIND"),
        (["--batches", "1,x"], "--batches takes numbers"),
        (["--photo", "nowhere.jpg"], "nowhere.jpg"),
    ],
)
def test_wrong_options_are_sentences(arguments: list[str], extra: list[str], sentence: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*arguments, *extra])
    assert result.exit_code == 2
    assert sentence in result.output
    assert not (tmp_path / "profile.json").exists()


def test_ap_of_other_photos_is_no_point_of_the_figure(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "accuracy.json").write_text(table(split="val", rows=[json.loads(table())["rows"][0] | {"ours": True}]))
    more = ["--accuracy", str(tmp_path / "accuracy.json"), "--figure", str(tmp_path / "figure.png")]
    result = CliRunner().invoke(app, [*arguments, *more])
    assert result.exit_code == 2
    assert "nothing that was timed has AP on drawn val" in result.output
    assert not (tmp_path / "figure.png").exists()


def test_a_fixed_size_comes_once_and_a_missing_package_is_told() -> None:
    class Fixed(Fake):
        def __init__(self) -> None:
            super().__init__(Path("fixed"), 320, 1)

    def missing() -> Fake:
        raise ImportError("No module named 'mtcnn'")

    told: list[str] = []
    sizes = [InputSize(height=32, width=32), InputSize(height=64, width=64)]
    photo = np.zeros((30, 40, 3), np.uint8)
    rows = profile_peers(lambda _: [("fixed", Fixed), ("mtcnn", missing)], sizes, 5, photo, told.append)
    assert [(row.detector, row.long_side, row.height) for row in rows] == [("fixed", 320, 32)]
    sizes.append(InputSize(height=256, width=320))
    rows = profile_peers(lambda _: [("fixed", Fixed)], sizes, 5, photo, told.append)
    assert [(row.detector, row.long_side, row.height) for row in rows] == [("fixed", 320, 256)]
    assert told == ["mtcnn is left out: No module named 'mtcnn'"]


def test_one_size_of_each_long_side_is_compared() -> None:
    sizes = [InputSize(height=h, width=w) for h, w in ((320, 320), (256, 320), (320, 256), (480, 640), (640, 480))]
    assert [str(size) for size in compared_sizes(sizes)] == ["256x320", "480x640"]
    photo = timing_photo(None)
    assert photo.shape == (512, 682, 3)
    assert resized(photo, InputSize(height=96, width=128)).shape == (96, 128, 3)


def test_files_and_tables_name_the_same_detector() -> None:
    known = Known("drawn", "dev", {("scrfd-2.5g", 640): (0.9, 0.4), ("yunet", 640): (0.8, 0.3)})

    def row(name: str, side: int = 640) -> PeerRow:
        return PeerRow(name, side, 480, 640, 1.0, 2.0, 5)

    assert ap_of(row("scrfd_2.5g"), known) == (0.9, 0.4)
    assert ap_of(row("yunet_2026may"), known) == (0.8, 0.3)
    assert ap_of(row("scrfd_2.5g", 320), known) is None
    assert ap_of(row("scrfd_10g"), known) is None
    assert ap_of(row("yunet"), None) is None


def test_a_peer_names_file_and_adapter(tmp_path: Path) -> None:
    (tmp_path / "a:b.onnx").touch()  # the adapter stands behind the last colon
    found = parse_peer(f"mine={tmp_path / 'a:b.onnx'}:scrfd")
    assert (found.name, found.path.name, found.kind) == ("mine", "a:b.onnx", "scrfd")
    (tmp_path / "scrfd_500m.onnx").touch()
    assert [name for name, _ in find_peers(tmp_path, 320, 1)] == ["scrfd_500m", "haar", "mtcnn"]
