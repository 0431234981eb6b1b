"""A real server on a real port, in a thread, for what only sockets show: drains, disconnects, browsers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI

from service.api.app import create_app
from service.api.server import DrainingServer
from service.settings import Settings
from tests.service.stub_detector import StubDetector


@dataclass
class Live:
    port: int
    server: DrainingServer
    thread: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def in_flight(self) -> int:
        return self.server._services.state.in_flight


@contextlib.contextmanager
def live_server(stub: StubDetector, **settings: Any) -> Iterator[Live]:
    with serving_app(create_app(Settings(**settings), lambda _settings, _metrics: stub)) as live:
        yield live


@contextlib.contextmanager
def serving_app(app: FastAPI) -> Iterator[Live]:
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_config=None, access_log=False, timeout_graceful_shutdown=2
    )
    server = DrainingServer(config, app.state.services)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started and thread.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    assert server.started, "the server did not start"
    try:
        yield Live(server.servers[0].sockets[0].getsockname()[1], server, thread)
    finally:
        server.should_exit = True
        thread.join(20)
