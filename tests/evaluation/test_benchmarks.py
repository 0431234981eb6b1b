"""The benchmarks themselves: adapters of other detectors, resumed runs, tables, pictures, latency measurements."""

from __future__ import annotations

import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from benchmarks import accuracy, latency, runs
from benchmarks.figure import draw, front
from benchmarks.footprint import installed_sizes, service_requirements
from benchmarks.hardware import describe
from benchmarks.server import Exchange, closed_loop, free_port, is_ready, running
from benchmarks.table import markdown
from export.peers import Haar, find_peers, nms, resize
from service.engines.base import Detections
from tests.evaluation.test_sources import constant_graph
from training.data.wider import PhotoAnnotation
from training.evaluation.wider import iou_matrix

# Where the astronaut's face is in the picture of 512 pixels.
FACE = (170, 60, 275, 200)


class Counting:
    """Says the same of every picture, and counts how often it is asked."""

    name, long_side, fingerprint = "counting", 320, "one"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, pixels: NDArray[np.uint8]) -> Detections:
        self.calls += 1
        return Detections(np.array([[1.5, 2, 30, 40]] * (self.calls % 3), np.float32).reshape(-1, 4),
                          np.full(self.calls % 3, 0.5, np.float32))  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path, astronaut: NDArray[np.uint8]) -> tuple[list[PhotoAnnotation], Path]:
    images = tmp_path / "dev" / "images"
    images.mkdir(parents=True)
    lines = []
    for name, flip in (("a.jpg", 1), ("b.jpg", -1)):
        Image.fromarray(astronaut[:, ::flip]).save(images / name, quality=95)
        left = FACE[0] if flip == 1 else 512 - FACE[2]
        lines += [name, "1", f"{left} {FACE[1]} {FACE[2] - FACE[0]} {FACE[3] - FACE[1]} 0 0 0 0 0 0"]
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "dev_bbx_gt.txt").write_text("\n".join(lines) + "\n")
    boxes = np.array([FACE], dtype=np.float64)
    return [PhotoAnnotation(name, boxes, np.zeros(1, bool)) for name in ("a.jpg", "b.jpg")], images


def test_nms_keeps_the_best_of_overlapping_boxes() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60], [90, 90, 99, 99]], dtype=np.float32)
    kept = nms(boxes, np.array([0.6, 0.9, 0.3, 0.001], dtype=np.float32), iou=0.4)
    assert kept.boxes.tolist() == [[1, 1, 11, 11], [50, 50, 60, 60]]
    assert nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), iou=0.4).boxes.shape == (0, 4)


def test_resizing_keeps_the_aspect() -> None:
    small, scale = resize(np.zeros((300, 600, 3), dtype=np.uint8), 320)
    assert small.shape == (160, 320, 3)
    assert scale == pytest.approx(320 / 600)
    assert resize(np.zeros((1, 900, 3), dtype=np.uint8), 320)[0].shape == (1, 320, 3)


def test_haar_finds_the_astronaut_in_pixels_of_the_picture(astronaut: NDArray[np.uint8]) -> None:
    for factor in (1, 2):  # the same face at twice the size comes back at twice the size
        picture = np.asarray(Image.fromarray(astronaut).resize((512 * factor, 512 * factor)))
        found = Haar(320, threads=1)(picture)
        best = found.boxes[int(found.scores.argmax())]
        assert iou_matrix([best], [np.array(FACE) * factor])[0, 0] > 0.4
    assert len(Haar(320, threads=1)(np.zeros((100, 100, 3), dtype=np.uint8)).scores) == 0


def test_mtcnn_finds_the_astronaut_in_pixels_of_the_picture(astronaut: NDArray[np.uint8]) -> None:
    pytest.importorskip("facenet_pytorch", reason="`make bench-accuracy` installs it")
    from export.peers import Mtcnn

    found = Mtcnn(320, threads=1)(astronaut)
    assert iou_matrix([found.boxes[int(found.scores.argmax())]], [FACE])[0, 0] > 0.5
    assert len(Mtcnn(320, threads=1)(np.zeros((100, 100, 3), dtype=np.uint8)).scores) == 0


def test_peers_are_those_whose_files_are_there(tmp_path: Path) -> None:
    assert [name for name, _ in find_peers(None, 640, 1)] == ["haar", "mtcnn"]
    for name in ("scrfd_500m", "yunet_2023mar", "ultralight_rfb_320", "other"):
        (tmp_path / f"{name}.onnx").touch()
    names = [name for name, _ in find_peers(tmp_path, 640, 1)]
    assert names == ["scrfd_500m", "yunet_2023mar", "ultralight_rfb_320", "haar", "mtcnn"]
    # A detector of one fixed size takes part once, however many long sides there are, and so do Haar and MTCNN.
    assert len(list(accuracy.contenders(None, tmp_path, [320, 640], 1))) == 2 * len(names) - 3
    assert len(list(accuracy.contenders(None, tmp_path, [960], 1))) == len(names)


def test_a_run_is_made_once_and_found_again(photos: tuple[list[PhotoAnnotation], Path], tmp_path: Path) -> None:
    source, cache = Counting(), tmp_path / "cache"
    first = runs.measure(source, *photos, cache, threads=1)
    asked = source.calls
    again = runs.measure(source, *photos, cache, threads=1)
    assert source.calls == asked
    assert (first.cached, again.cached) == (False, True)
    assert again.run.sizes == first.run.sizes == {"a.jpg": (512, 512), "b.jpg": (512, 512)}
    assert again.run.wall_seconds == first.run.wall_seconds
    assert (again.date, again.load) == (first.date, first.load)
    counts = []
    for name, found in first.run.found.items():
        np.testing.assert_array_equal(again.run.found[name].boxes, found.boxes)
        np.testing.assert_array_equal(again.run.found[name].scores, found.scores)
        counts.append(len(found.scores))
    assert counts == [1, 2]  # the fourth and the fifth call, after three to warm up

    assert not runs.measure(source, *photos, cache, threads=1, fresh=True).cached
    assert not runs.measure(source, *photos, cache, threads=2).cached
    source.fingerprint = "two"
    assert not runs.measure(source, *photos, cache, threads=1).cached
    Image.new("RGB", (64, 64)).save(photos[1] / "b.jpg")
    assert not runs.measure(source, *photos, cache, threads=1).cached


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 cut off"])
def test_a_damaged_run_is_made_again(
    content: bytes, photos: tuple[list[PhotoAnnotation], Path], tmp_path: Path
) -> None:
    source, cache = Counting(), tmp_path / "cache"
    runs.measure(source, *photos, cache, threads=1)
    (kept,) = cache.iterdir()
    kept.write_bytes(content)
    assert not runs.measure(source, *photos, cache, threads=1).cached
    assert runs.measure(source, *photos, cache, threads=1).cached


def test_an_interrupted_run_leaves_nothing_half_done(
    photos: tuple[list[PhotoAnnotation], Path], tmp_path: Path
) -> None:
    class Interrupted(Counting):
        def __call__(self, pixels: NDArray[np.uint8]) -> Detections:
            if self.calls == 4:
                raise KeyboardInterrupt
            return super().__call__(pixels)

    with pytest.raises(KeyboardInterrupt):
        runs.measure(Interrupted(), *photos, tmp_path / "cache", threads=1)
    assert not list(tmp_path.glob("cache/*"))


def test_the_accuracy_benchmark_writes_table_json_and_picture(
    photos: tuple[list[PhotoAnnotation], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = constant_graph(tmp_path / "d0.onnx")
    app = typer.Typer()
    app.command()(accuracy.main)
    # Without MTCNN, which takes seconds to load; the rest is the real thing.
    monkeypatch.setattr(accuracy, "find_peers", lambda *rest: [one for one in find_peers(*rest) if one[0] != "mtcnn"])
    monkeypatch.setattr(accuracy, "open_sources", lambda _, side, threads: runs_of(graph, side, threads))
    (tmp_path / "models" / "d0").mkdir(parents=True)
    (tmp_path / "models" / "d0" / "manifest.json").touch()
    out = tmp_path / "results" / "accuracy.json"
    arguments = [
        "--data", str(tmp_path), "--repository", str(tmp_path / "models"), "--peers", str(tmp_path / "none"),
        "--cache", str(tmp_path / "cache"), "--out", str(out), "--long-sides", "320,480",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    table = accuracy.Table.model_validate_json(out.read_text())
    assert [(row.detector, row.ours, row.long_side) for row in table.rows] == [
        ("d0", True, 320), ("d0", True, 480), ("haar", False, 480),
    ]  # fmt: skip
    haar = table.rows[2]
    assert haar.recall50 > 0
    assert 0 < haar.cpu_ms_median <= haar.cpu_ms_mean * 2
    assert (table.photos, table.faces, table.threads) == (2, 2, 1)
    assert table.hardware.cpu
    assert table.hardware.packages["numpy"] == np.__version__
    text = out.with_suffix(".md").read_text()
    assert text.count("**d0**") == 2
    assert table.hardware.cpu in text
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.width > 1000
        colours = {colour for _, colour in picture.convert("RGB").getcolors(10**7) or []}
        assert (0x0B, 0x6E, 0x4F) in colours  # ours is drawn
    again = CliRunner().invoke(app, arguments)
    assert again.output.count("measured before") == 3


def test_others_that_cannot_be_run_are_left_out(
    photos: tuple[list[PhotoAnnotation], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Any:
        raise ModuleNotFoundError("No module named 'facenet_pytorch'")

    monkeypatch.setattr(accuracy, "find_peers", lambda *rest: [*find_peers(*rest)[:-1], ("mtcnn", missing)])
    app = typer.Typer()
    app.command()(accuracy.main)
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "scrfd_500m.onnx").write_bytes(b"\xff" * 99)
    (tmp_path / "peers" / "yunet_x.onnx").write_bytes(b"\xff" * 99)
    out = tmp_path / "results" / "accuracy.json"
    arguments = [
        "--data", str(tmp_path), "--repository", str(tmp_path / "none"), "--peers", str(tmp_path / "peers"),
        "--cache", str(tmp_path / "cache"), "--out", str(out), "--long-sides", "320",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert [row.detector for row in accuracy.Table.model_validate_json(out.read_text()).rows] == ["haar"]
    for name in ("scrfd_500m", "yunet_x", "mtcnn"):
        assert f"note: {name} is left out" in result.output
    for wrong, said in (
        (["--long-sides", "x"], "--long-sides takes numbers"),
        (["--long-sides", "0"], "--long-sides takes numbers"),
        (["--limit", "-1"], "--limit"),
        (["--threads", "100000"], "--threads"),
        (["--out", str(tmp_path)], "is a folder"),
    ):
        refused = CliRunner().invoke(app, [*arguments, *wrong])
        assert refused.exit_code == 2
        assert said in refused.output


def test_the_latency_benchmark_checks_its_options_first(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(latency.main)
    for wrong, said in ((["--batches", "x"], "--batches takes numbers"), (["--out", str(tmp_path)], "is a folder")):
        refused = CliRunner().invoke(app, wrong)
        assert refused.exit_code == 2
        assert said in refused.output


def runs_of(graph: Path, side: int, threads: int) -> list[object]:
    from training.evaluation.sources import open_sources

    return list(open_sources(graph, side, threads))


def test_the_front_is_what_nothing_faster_equals() -> None:
    def row(name: str, ms: float, ap50: float) -> accuracy.Row:
        return accuracy.Row(
            detector=name, ours=False, long_side=640, ap50=ap50, ap=0.5, ap50_strict=0.8, recall50=0.9, ap50_small=None,
            ap50_medium=None, ap50_large=None, ms_median=ms, ms_mean=ms, cpu_ms_median=ms, cpu_ms_mean=ms, measured="",
            load=0,
        )  # fmt: skip

    rows = [row("slow", 9, 0.8), row("equal", 6, 0.7), row("fast", 5, 0.7), row("worse", 7, 0.6), row("tie", 5, 0.65)]
    assert [one.detector for one in front(rows)] == ["fast", "slow"]
    assert front([]) == []


def test_the_table_shows_missing_sizes_as_dashes(tmp_path: Path) -> None:
    row = accuracy.Row(
        detector="d0", ours=True, long_side=640, ap50=0.9, ap=0.5, ap50_strict=0.8, recall50=0.95, ap50_small=None,
        ap50_medium=0.7, ap50_large=0.6, ms_median=10, ms_mean=11, cpu_ms_median=9, cpu_ms_mean=9, measured="", load=0,
    )  # fmt: skip
    table = accuracy.Table(
        data="faces", split="dev", photos=1, faces=1, ignored=0, threads=1, hardware=describe(), rows=[row]
    )
    assert "| **d0** | 640 | 0.9000 | 0.5000 | - | 0.7000 | 0.6000 |" in markdown(table)
    draw(table, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 5000


def test_installed_sizes_follow_what_packages_need() -> None:
    sizes = installed_sizes(["httpx>=0.1", 'nothing-at-all; python_version < "3"'])
    assert {"httpx", "httpcore", "anyio"} <= set(sizes)
    assert "nothing-at-all" not in sizes
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert sizes["httpx"] > 10_000
    assert any(line.startswith("onnxruntime") for line in service_requirements())
    assert not any(line.startswith("torch") for line in service_requirements())
    with pytest.raises(ValueError, match="no-such-package-here"):
        installed_sizes(["no-such-package-here"])


@pytest.fixture
def stub_service() -> Iterator[tuple[int, list[tuple[str, bytes]]]]:
    """A server that answers as /detect does, and keeps what it was sent."""
    seen: list[tuple[str, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(200 if self.path == "/health/ready" else 404, {})

        def do_POST(self) -> None:
            seen.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(503 if "tier=full" in self.path else 200, {"number": len(seen)})

        def answer(self, status: int, content: dict[str, int]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1], seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_closed_loop_asks_one_at_a_time(stub_service: tuple[int, list[tuple[str, bytes]]]) -> None:
    port, seen = stub_service
    assert is_ready(port)
    exchanges = closed_loop(port, b"photo", "tier=realtime", requests=4, warm_up=2)
    assert [exchange.answer["number"] for exchange in exchanges] == [3, 4, 5, 6]
    assert all(exchange.milliseconds > 0 for exchange in exchanges)
    assert set(seen) == {("/detect?tier=realtime", b"photo")}
    with pytest.raises(RuntimeError, match="503"):
        closed_loop(port, b"photo", "tier=full", requests=1)
    assert not is_ready(free_port())


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="nowhere"), running(tmp_path / "nowhere", tmp_path, threads=1):
        pass


def test_a_summary_takes_percentiles_and_the_usual_choice() -> None:
    from benchmarks.latency import photo, summarise

    def exchange(ms: float, variant: str, met: bool) -> Exchange:
        model = {"variant": variant, "input": {"width": 640, "height": 480}}
        latency = {"decode_ms": ms / 4, "infer_ms": ms / 2, "deadline_met": met}
        return Exchange(ms, {"model": model, "latency": latency})

    row = summarise("t", 50, (64, 48), [exchange(10, "a", True), exchange(20, "b", True), exchange(30, "b", False)])
    assert (row.p50_ms, row.p99_ms, row.decode_ms, row.infer_ms) == (20, 29.8, 5, 10)
    assert (row.on_time, row.chosen, row.requests) == (0.6667, "b 640x480", 3)
    with Image.open(io.BytesIO(photo(320, 240))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (320, 240))
