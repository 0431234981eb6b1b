"""Everything but detection: tiers, models, health, metrics, the page and the reference."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.api.deps import Services, ServicesDep
from service.api.pages import Page, page
from service.api.schemas import Health, Tier, TiersAnswer

router = APIRouter()


@router.get("/tiers", summary="Latency tiers and their budgets")
async def tiers(services: ServicesDep) -> TiersAnswer:
    """Fastest first. A tier is a name for a budget; the detector is chosen anew for each request."""
    settings = services.settings
    return TiersAnswer(
        tiers=[
            Tier(name=name, budget_ms=budget, default=name == settings.default_tier)
            for name, budget in settings.tiers.items()
        ]
    )


@router.get("/models", summary="Variants with their live latency, accuracy and memory")
async def models(services: ServicesDep) -> JSONResponse:
    """Latencies in milliseconds, p50 and p99, as measured on this machine at start and since."""
    detector = services.detector
    return JSONResponse({"status": detector.status, "variants": [_plain(item) for item in detector.variants]})


@router.get("/health/live", summary="Is the process alive?", responses={503: {"model": Health}})
async def live(services: ServicesDep, response: Response) -> Health:
    """503 once the engine hangs or has lost its device: only a new process helps then."""
    if services.detector.failure is not None:
        response.status_code = 503
        return Health(status=services.detector.failure)
    return Health(status="alive")


@router.get("/health/ready", summary="Can it answer now?", responses={503: {"model": Health}})
async def ready(services: ServicesDep, response: Response) -> Health:
    """200 once models are loaded, profiled and warm; 503 with the reason before, while draining and after failure."""
    ok, reason = readiness(services)
    if not ok:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    return Health(status=reason)


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request, services: ServicesDep) -> Response:
    body, content_type = services.metrics.render(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})


@router.get("/", include_in_schema=False)
async def home() -> Response:
    return _page_response(page("index.html"))


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    return _page_response(page("docs.html"))


def readiness(services: Services) -> tuple[bool, str]:
    """Whether requests can be answered, and in a few words why or why not."""
    if services.detector.failure is not None:
        return False, services.detector.failure
    if services.state.draining:
        return False, "draining: the service is shutting down"
    if services.state.fatal is not None:
        return False, services.state.fatal
    if not services.detector.ready:
        return False, services.detector.status
    return True, "ready"


def _page_response(found: Page) -> Response:
    return Response(
        found.html,
        media_type="text/html",
        headers={
            "Content-Security-Policy": found.policy,
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        },
    )


def _plain(item: Any) -> Any:
    return dataclasses.asdict(item) if dataclasses.is_dataclass(item) and not isinstance(item, type) else item
