"""What only sockets show: draining, clients that leave, refusals that arrive although the client still sends."""

from __future__ import annotations

import http.client
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from service.api.server import EXIT_START_FAILED, serve
from service.settings import Settings
from tests.service.live import live_server
from tests.service.stub_detector import StubDetector, picture

JPEG = {"content-type": "image/jpeg"}


def wait_for(condition: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def test_drain_finishes_what_runs_refuses_what_is_new_and_then_ends() -> None:
    stub = StubDetector(delay=0.8)
    with live_server(stub, drain_seconds=20) as live:
        answers: list[int] = []

        def ask() -> None:
            answers.append(httpx.post(f"{live.url}/detect", content=picture(), headers=JPEG, timeout=30).status_code)

        running = threading.Thread(target=ask)
        running.start()
        wait_for(lambda: stub.asks)
        live.server.handle_exit(signal.SIGTERM, None)
        ready = httpx.get(f"{live.url}/health/ready")
        assert (ready.status_code, ready.json()["status"].split(":")[0]) == (503, "draining")
        assert httpx.post(f"{live.url}/detect", content=picture(), headers=JPEG).status_code == 503
        running.join(20)
        assert answers == [200]
        live.thread.join(10)
        assert not live.thread.is_alive()
    assert stub.closed


def test_drain_is_bounded() -> None:
    stub = StubDetector(delay=600)
    with live_server(stub, drain_seconds=0.3) as live:
        connection = http.client.HTTPConnection("127.0.0.1", live.port)
        connection.request("POST", "/detect", picture(), JPEG)
        wait_for(lambda: stub.asks)
        live.server.handle_exit(signal.SIGTERM, None)
        live.thread.join(15)
        assert not live.thread.is_alive()
        connection.close()
    assert stub.cancelled == 1


def test_client_that_hangs_up_cancels_its_detection() -> None:
    stub = StubDetector(delay=600)
    with live_server(stub) as live:
        connection = http.client.HTTPConnection("127.0.0.1", live.port)
        connection.request("POST", "/detect", picture(), JPEG)
        wait_for(lambda: stub.asks)
        connection.close()
        wait_for(lambda: stub.cancelled == 1)
        assert 'outcome="client_gone"' in httpx.get(f"{live.url}/metrics").text


def test_refusal_reaches_a_client_that_sends_everything_first() -> None:
    with live_server(StubDetector(), max_upload_bytes=100_000) as live:
        body = b"\xff\xd8\xff" + b"\0" * 8_000_000
        for path, status in (("/detect", 413), ("/detect?tier=no-such", 422), ("/nope", 404)):
            connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)
            # Such a connection is closed right after the answer, with the rest of the body still on its way.
            connection.request("POST", path, body, {**JPEG, "Connection": "close"})
            assert connection.getresponse().status == status
            connection.close()


def test_client_that_waits_for_a_go_ahead_is_refused_before_it_sends() -> None:
    head = (
        b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
        b"Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n"
    )
    with (
        live_server(StubDetector(), max_upload_bytes=100_000) as live,
        socket.create_connection(("127.0.0.1", live.port), timeout=10) as client,
    ):
        client.sendall(head)
        assert client.recv(64).startswith(b"HTTP/1.1 413")


def test_bodies_that_fill_the_memory_they_may_have_are_refused_largest_first() -> None:
    head = b"POST /detect HTTP/1.1\r\nHost: test\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    stub = StubDetector()
    limits = {"max_upload_bytes": 2**20, "max_batch_upload_bytes": 2**20, "max_inflight_bytes": 2**20}
    with live_server(stub, **limits) as live:
        address = ("127.0.0.1", live.port)
        state = live.server._services.state
        with socket.create_connection(address, 20) as slow, socket.create_connection(address, 20) as large:
            slow.sendall(head % 400_000 + bytes(300_000))
            wait_for(lambda: state.body_bytes == 300_000)
            large.sendall(head % 1_000_000 + bytes(900_000))
            assert large.recv(4096).startswith(b"HTTP/1.1 503")
            # A small one has its share, although the slow one still holds what it sent.
            assert httpx.post(f"{live.url}/detect", content=picture(), headers=JPEG).status_code == 200
        wait_for(lambda: state.body_bytes == 0)


def test_heads_are_answered_like_gets_without_a_body() -> None:
    with live_server(StubDetector()) as live:
        for path in ("/", "/health/live", "/health/ready", "/metrics"):
            head, get = httpx.head(live.url + path), httpx.get(live.url + path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"] == get.headers["content-type"]
        assert httpx.head(f"{live.url}/detect").status_code == 405


def test_pictures_are_drawn_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing: list[int] = []
    most: list[int] = []

    def draw(*_args: object) -> bytes:
        drawing.append(1)
        most.append(len(drawing))
        time.sleep(0.05)
        drawing.pop()
        return b"drawn"

    monkeypatch.setattr("service.api.detect.annotated", draw)
    with live_server(StubDetector()) as live:

        def ask() -> None:
            httpx.post(f"{live.url}/detect?return=image", content=picture(), headers=JPEG, timeout=30)

        asking = [threading.Thread(target=ask) for _ in range(4)]
        for one in asking:
            one.start()
        for one in asking:
            one.join(20)
    assert most == [1, 1, 1, 1]


def test_models_that_cannot_be_loaded_end_the_process_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    try:
        code = serve(Settings(repository=tmp_path / "no-models", port=0, log_level="CRITICAL"))
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]
    assert code == EXIT_START_FAILED
    assert "no-models" in capsys.readouterr().err
