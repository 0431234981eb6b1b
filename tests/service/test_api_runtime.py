"""The whole service over HTTP with the real runtime, on a model repository of tiny graphs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from service.api.app import create_app
from service.api.schemas import DetectAnswer
from service.settings import Settings
from tests.service.fake_model import FACES, write_fake_repository
from tests.service.stub_detector import picture

JPEG = {"content-type": "image/jpeg"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def client(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    cache = tmp_path_factory.mktemp("cache")
    app = create_app(Settings(repository=repository, cache_dir=cache, intra_op_threads=1))
    with TestClient(app, raise_server_exceptions=False) as opened:
        wait_ready(lambda: opened.get("/health/ready").status_code == 200)
        yield opened


def wait_ready(ready: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "not ready in time"
        time.sleep(0.05)


def test_boxes_come_back_in_pixels_of_the_original(client: TestClient) -> None:
    response = client.post("/detect?tier=accurate", content=picture(size=(1280, 640)), headers=JPEG)
    answer = DetectAnswer.model_validate(response.json(), extra="forbid")
    assert (answer.model.variant, answer.model.input.width, answer.model.input.height) == ("d1", 128, 64)
    assert answer.model.ap50 == pytest.approx(0.7)
    assert np.allclose([face.box for face in answer.faces], FACES * 10, atol=0.5)
    assert (answer.image.width, answer.image.height) == (1280, 640)


def test_rotated_photo_gives_boxes_of_the_upright_one(client: TestClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    response = client.post("/detect", content=picture(size=(640, 1280), exif=exif), headers=JPEG)
    answer = DetectAnswer.model_validate(response.json())
    assert (answer.image.width, answer.image.height) == (1280, 640)
    assert np.allclose([face.box for face in answer.faces], FACES * 10, atol=0.5)


def test_filters_and_pins(client: TestClient) -> None:
    query = "variant=d0&long_side=64&min_score=0.5"
    answer = client.post(f"/detect?{query}", content=picture(size=(64, 64)), headers=JPEG).json()
    assert (answer["model"]["variant"], answer["model"]["input"]) == ("d0", {"height": 64, "width": 64})
    assert len(answer["faces"]) == 1
    assert len(client.post("/detect?max_faces=1", content=picture(), headers=JPEG).json()["faces"]) == 1


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("min_score=0.01", "0.05"),
        ("variant=d9", "d0, d1"),
        ("variant=d0&long_side=4096", "[64, 128]"),
    ],
)
def test_what_only_the_models_know_is_refused_with_what_they_have(client: TestClient, query: str, words: str) -> None:
    response = client.post(f"/detect?{query}", content=picture(), headers=JPEG)
    assert response.status_code == 422
    assert words in response.json()["detail"]


def test_infeasible_budget_is_refused_or_answered_late(client: TestClient) -> None:
    refused = client.post("/detect?latency_ms=0.001&on_infeasible=reject", content=picture(), headers=JPEG)
    assert refused.status_code == 503
    problem = refused.json()
    assert problem["smallest_feasible_ms"] >= problem["budget_ms"]
    assert int(refused.headers["retry-after"]) >= 1
    late = client.post("/detect?latency_ms=0.001", content=picture(), headers=JPEG)
    assert late.status_code == 200
    assert late.json()["latency"]["deadline_met"] is False


def test_models_and_metrics_after_real_requests(client: TestClient) -> None:
    client.post("/detect", content=picture(), headers=JPEG)
    listed = client.get("/models").json()
    assert [item["variant"] for item in listed["variants"]] == ["d0", "d1"]
    assert all(row["p99_ms"] > 0 for item in listed["variants"] for row in item["inputs"])
    text = client.get("/metrics").text
    for series in ('asfd_stage_seconds_count{stage="decode"}', 'asfd_stage_seconds_count{stage="infer"}'):
        assert series in text
    assert "asfd_ready 1.0" in text


def test_rude_inputs_leave_it_working(client: TestClient) -> None:
    for size in ((1, 1), (30000, 2), (2, 30000)):
        assert client.post("/detect", content=picture(size=size), headers=JPEG).status_code == 200
    good = picture(size=(300, 200))
    assert client.post("/detect", content=good[: len(good) // 2], headers=JPEG).status_code == 400
    assert client.post("/detect", content=good, headers=JPEG).status_code == 200


def test_the_command_serves_and_sigterm_ends_it_cleanly(repository: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ, "PORT": str(port), "HOST": "127.0.0.1", "OMP_NUM_THREADS": "1",
        "ASFD_REPOSITORY": str(repository), "ASFD_CACHE_DIR": str(tmp_path), "ASFD_INTRA_OP_THREADS": "1",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve"], env=environment, stderr=subprocess.PIPE, text=True
    )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        try:
            return httpx.get(f"{url}/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_ready(ready)
        assert httpx.post(f"{url}/detect", content=picture(), headers=JPEG).status_code == 200
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert '"path": "/detect"' in log
    assert "Traceback" not in log
