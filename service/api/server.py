"""Run the app under uvicorn in this process, with a drain at SIGTERM and an exit code that tells.

While draining, /health/ready answers 503 and new pictures are refused, but the port stays open until running requests
are done or `drain_seconds` are over: uvicorn alone would close it at once, and no load balancer could learn why.
"""

from __future__ import annotations

import logging
import logging.config
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

import uvicorn

from service.api.app import create_app
from service.api.deps import Services
from service.settings import Settings

EXIT_OK = 0
EXIT_START_FAILED = 3
EXIT_ENGINE_LOST = 4
# One process owns the engine and its queue. Idle connections are closed by uvicorn; this is for stuck ones.
_CLOSE_SECONDS = 2
_KEEP_ALIVE_SECONDS = 75

_LOG = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """First signal: drain, then stop. Second signal: stop now."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services
        self._drain_until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain_until is not None:
            self.should_exit = self.force_exit = True
            return
        self._drain_until = time.monotonic() + self._services.settings.drain_seconds
        self._services.state.draining = True
        _LOG.info("draining: %d requests are running", self._services.state.in_flight)

    async def on_tick(self, counter: int) -> bool:
        state = self._services.state
        if state.fatal is not None:
            self.should_exit = True
        if self._services.detector.failure is not None and self._drain_until is None:
            self.handle_exit(signal.SIGTERM, None)
        if self._drain_until is not None and (state.in_flight == 0 or time.monotonic() >= self._drain_until):
            self.should_exit = True
        return await super().on_tick(counter)


def serve(settings: Settings) -> int:
    """Serve until a signal. Returns the process's exit code: 3 when the models could not be loaded.

    Ends the process with code 4 where the engine was lost.
    """
    logging.config.dictConfig(_log_config(settings.log_level))
    app = create_app(settings)
    services: Services = app.state.services
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # the middleware's line says more
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )
    DrainingServer(config, services).run()
    if services.state.fatal is not None:
        print(f"asfd: {services.state.fatal}", file=sys.stderr)
        return EXIT_START_FAILED
    if services.detector.failure is not None:
        print(f"asfd: {services.detector.failure}", file=sys.stderr, flush=True)
        logging.shutdown()
        # Not by the interpreter's own way out: libraries of the GPU would wait there for what hangs.
        os._exit(EXIT_ENGINE_LOST)
    return EXIT_OK


def _log_config(level: str) -> dict[str, Any]:
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {"uvicorn.error": {"level": level}, "PIL": {"level": "WARNING"}},
    }
