"""The app factory: `create_app()`, for `python -m service serve`, for tests and for `uvicorn --factory`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI

import service
from service.api import detect, detect_batch, info, problems
from service.api.context import RequestContext, ServerState
from service.api.deps import Detector, Services
from service.api.metrics import Metrics
from service.api.middleware import RequestMiddleware
from service.runtime import Runtime
from service.settings import Settings, load_settings, unknown_variables

_LOG = logging.getLogger(__name__)

_DESCRIPTION = """\
Post a picture with a latency budget; the most accurate face detector that can still finish in time answers.

- The budget is a tier (`?tier=`) or milliseconds (`?latency_ms=`), and runs from the first byte of the request.
- Boxes are pixels of the upright original (after its EXIF orientation).
- Errors are `application/problem+json` and say what to do.
"""

DetectorFactory = Callable[[Settings, Metrics], Detector]


def create_app(settings: Settings | None = None, make_detector: DetectorFactory = Runtime) -> FastAPI:
    """Build an app. Nothing is loaded before its lifespan starts; two apps in one process share nothing.

    make_detector: for tests; the runtime by default.
    """
    settings = settings or load_settings()
    metrics = Metrics(settings.tiers)
    services = Services(
        settings,
        make_detector(settings, metrics),
        metrics,
        ServerState(),
        ThreadPoolExecutor(1, thread_name_prefix="draw"),
    )
    app = FastAPI(
        title="asfd",
        summary="Face detection that keeps its latency budget",
        description=_DESCRIPTION,
        version=service.__version__,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,  # its own /docs: the framework's one loads scripts from outside
        redoc_url=None,
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    app.state.services = services
    metrics.watch(
        queue_length=lambda: services.detector.queue_length,
        in_flight=lambda: services.state.in_flight,
        ready=lambda: float(info.readiness(services)[0]),
    )
    problems.install(app)
    app.include_router(detect.router)
    app.include_router(detect_batch.router)
    app.include_router(info.router)

    direct = {"/detect": detect.detect, "/detect/batch": detect_batch.detect_batch}

    def done(path: str, context: RequestContext) -> None:
        if path in direct:
            metrics.request_done(context)

    app.add_middleware(
        RequestMiddleware, state=services.state, on_done=done, direct=direct, most_bytes=settings.max_inflight_bytes
    )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load and profile in the background, so that /health answers from the first moment; drain at the end."""
    services: Services = app.state.services
    for name in unknown_variables():
        _LOG.warning("environment variable %s is not a setting of this service; is it misspelt?", name)
    start = asyncio.create_task(_start(services), name="asfd-start")
    try:
        yield
    finally:
        services.state.draining = True
        if not start.done():
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
        try:
            await services.detector.drain(services.settings.drain_seconds)
        finally:
            await services.detector.close()
            services.drawer.shutdown(wait=False, cancel_futures=True)


async def _start(services: Services) -> None:
    try:
        await services.detector.start()
    except Exception as error:
        # The server decides what to do; on its own the app keeps answering 503 with the reason.
        services.state.fatal = f"start failed: {error}"
        _LOG.error("%s", services.state.fatal, exc_info=_LOG.isEnabledFor(logging.DEBUG))
