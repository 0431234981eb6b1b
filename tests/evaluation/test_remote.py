"""Sources that are not an ONNX file: a running service, and plans of TensorRT, on a fake of it."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import uvicorn
from typer import Typer
from typer.testing import CliRunner

from service.api.app import create_app
from service.api.server import DrainingServer
from service.settings import Settings
from tests.engines.fake_cuda import Error
from tests.engines.gpu_fakes import install, pictures
from tests.engines.gpu_repository import store_plan, write_gpu_repository
from tests.evaluation.test_sources import write_split
from tests.service.fake_model import FACES, write_fake_repository
from training.evaluation.command import evaluate_command
from training.evaluation.remote import ServiceSource
from training.evaluation.sources import open_sources

# --- TensorRT -------------------------------------------------------------------------------------


def test_an_engine_file_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d0.engine").write_bytes(b"engine")
    for name in ("tensorrt", "tensorrt_lean"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"TensorRT is not installed.*pip install"):
        open_sources(tmp_path / "d0.engine", 640)


def test_an_engine_file_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = install(monkeypatch)
    (tmp_path / "d0.plan").write_bytes(gpu.trt.plan([(480, 640)], 1))
    gpu.cuda.fail["cudaGetDeviceCount"] = Error.cudaErrorNoDevice
    with pytest.raises(ValueError, match="no NVIDIA GPU"):
        open_sources(tmp_path / "d0.plan", 640)


def test_an_engine_file_is_run_as_the_service_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = install(monkeypatch)
    path = tmp_path / "d0.plan"
    path.write_bytes(gpu.trt.plan([(64, 96), (96, 64), (192, 256)], 1))
    (source,) = open_sources(path, 96)
    assert (source.name, source.long_side) == ("d0", 96)
    picture = pictures(2, height=192, width=128)[0]
    picture[:8, :8] = 2  # what the fake counts by, at half size
    found = source(picture)
    assert len(found.scores) == 2
    np.testing.assert_allclose(found.boxes[0], [0, 0, 20, 20])
    assert gpu.seen[-1].shape == (1, 96, 64, 3)
    with pytest.raises(ValueError, match=r"d0\.plan.*\[96, 256\]"):
        open_sources(path, 640)


def test_a_damaged_plan_of_a_repository_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = install(monkeypatch)
    stored = store_plan(gpu, write_gpu_repository(tmp_path / "models"), "d0-fp16")
    assert [source.long_side for source in open_sources(stored.path, 64)] == [64]
    stored.path.write_bytes(stored.path.read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"d0-fp16.*\.plan has \d+ bytes"):
        open_sources(stored.path, 64)


# --- a running service ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real server with the fake models `d0` and `d1`. It drops scores under 0.5 unless told."""
    root = tmp_path_factory.mktemp("service")
    settings = Settings(
        repository=write_fake_repository(root / "models"), cache_dir=root / "cache", intra_op_threads=1,
        default_min_score=0.5,
    )  # fmt: skip
    app = create_app(settings)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False)
    server = DrainingServer(config, app.state.services)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 60
        while not (server.started and app.state.services.detector.ready):
            assert thread.is_alive(), "the service ended"
            assert time.monotonic() < end, "the service did not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


def test_a_service_has_every_variant(service: str) -> None:
    assert [(one.name, one.long_side) for one in open_sources(service, 64)] == [("d0", 64), ("d1", 64)]
    assert [one.name for one in open_sources(f"{service}/#d1", 128)] == ["d1"]
    first, second = open_sources(service, 64)
    assert first.fingerprint != second.fingerprint
    assert first.fingerprint == open_sources(service, 64)[0].fingerprint


def test_a_service_answers_in_pixels_of_the_picture_whatever_its_threshold(service: str) -> None:
    # The fake model says the same in pixels of its input, which is a third of this picture. Its second face has 0.4.
    found = open_sources(f"{service}#d0", 64)[0](np.zeros((192, 192, 3), dtype=np.uint8))
    np.testing.assert_allclose(found.boxes, FACES * 3)
    np.testing.assert_allclose(found.scores, [0.9, 0.4])
    assert found.boxes.dtype == np.float32


def test_a_service_is_evaluated_like_a_file(service: str, tmp_path: Path) -> None:
    # Photo one is ten, photo two five times as large as the input of 64. The first face of each is annotated; in photo
    # one it reaches beyond the lower border and is cut off there.
    write_split(tmp_path, tmp_path / "dev" / "images", tmp_path / "split" / "dev_bbx_gt.txt")
    (tmp_path / "split" / "dev_bbx_gt.txt").write_text(
        "event/one.jpg\n1\n80 160 320 320\nevent/two.png\n1\n40 80 160 240\n"
    )
    app = Typer()
    app.command()(evaluate_command)
    out = tmp_path / "report.json"
    arguments = [f"{service}#d0", "--data", str(tmp_path), "--long-side", "64", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    row = json.loads(out.read_text())["rows"][0]
    assert (row["source"], row["long_side"], row["ap"], row["detections"]) == ("d0", 64, 1.0, 4)


def test_what_a_service_cannot_do_is_said(service: str) -> None:
    with pytest.raises(ValueError, match=r"no variant 'd7'; it has d0, d1"):
        open_sources(f"{service}#d7", 64)
    with pytest.raises(ValueError, match=r"no input size of long side 640; it has \[64, 128\]"):
        open_sources(service, 640)
    with pytest.raises(ValueError, match="give a long side"):
        open_sources(service, None)
    with pytest.raises(ValueError, match="answered 404"):
        open_sources(f"{service}/elsewhere", 64)
    with pytest.raises(ValueError, match=r"answered 422.*0\.05"):
        ServiceSource(service, "d0", 64, 0.01, "f")(np.zeros((64, 64, 3), dtype=np.uint8))
    with pytest.raises(ConnectionError, match="no service answers"):
        open_sources("http://127.0.0.1:9", 64)


class Scripted(BaseHTTPRequestHandler):
    """Answers as `answers` says, one after another."""

    answers: ClassVar[list[tuple[int, bytes]]] = []

    def do_GET(self) -> None:
        status, body = self.answers.pop(0)
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_a_busy_service_is_asked_again(scripted: str) -> None:
    busy = (503, b'{"detail": "The queue is full."}')
    row = {"variant": "d0", "inputs": [{"height": 64, "width": 64}], "thresholds": {"score": 0.05}}
    Scripted.answers[:] = [busy, busy, (200, json.dumps({"variants": [row]}).encode())]
    assert [one.name for one in open_sources(scripted, 64)] == ["d0"]
    Scripted.answers[:] = [busy] * 5
    with pytest.raises(ConnectionError, match=r"503 5 times: The queue is full\."):
        open_sources(scripted, 64)


@pytest.mark.parametrize(
    ("status", "body", "error", "message"),
    [
        (200, b"<html>", ValueError, "did not answer with JSON"),
        (200, b"[]", ValueError, "something else"),
        (200, b"{}", ValueError, "does not list variants"),
        (200, b'{"variants": []}', ConnectionError, "no variant yet"),
        (500, b"<html>", ValueError, "answered 500"),
    ],
)
def test_strangers_are_recognised(
    scripted: str, status: int, body: bytes, error: type[Exception], message: str
) -> None:
    Scripted.answers[:] = [(status, body)]
    with pytest.raises(error, match=message):
        open_sources(scripted, 64)
