"""POST /detect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.api.answers import annotated, answer_headers, answer_json, preferred_format
from service.api.context import RequestContext, context_of
from service.api.deps import Services, services_of
from service.api.intake import ACCEPTED_TYPES, FIELD, read_picture
from service.api.metrics import GONE_LATE
from service.api.query import BUDGET_HEADER, Budget, budget_of, described_parameters, read_query
from service.api.schemas import DetectAnswer, DetectQuery, Problem
from service.contract import Answer, Ask
from service.errors import NotReadyError
from service.imaging.decode import ImageHeader, Limits, inspect
from service.settings import Settings

T = TypeVar("T")

router = APIRouter()

CLIENT_GONE = 499  # nobody reads it; it marks the log line and the metrics as nginx's convention does

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_REQUEST_BODY = {
    "required": True,
    "description": f"The picture itself, or a form with the field `{FIELD}`.",
    "content": {
        **{content_type: _BINARY for content_type in ACCEPTED_TYPES},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {FIELD: {"type": "string", "format": "binary"}},
            }
        },
    },
}
_PROBLEMS = {
    400: "Empty, truncated or damaged picture, or a broken multipart body",
    408: "The body came too slowly",
    413: "Too many bytes or too many pixels",
    415: "Not JPEG, PNG or WebP",
    422: "A parameter that cannot be used",
    500: "The detector failed",
    503: "Infeasible budget with on_infeasible=reject, full queue, or not ready; see Retry-After",
    504: "The budget ran out before an answer was there",
}
PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {
        "description": text,
        "content": {"application/problem+json": {"schema": Problem.model_json_schema()}},
    }
    for status, text in _PROBLEMS.items()
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": DetectAnswer,
        "description": "The faces, or with `return=image` the annotated picture",
        "content": {"image/jpeg": _BINARY, "image/png": _BINARY},
    },
    **PROBLEM_RESPONSES,
}


class ClientGoneError(Exception):
    """The client closed the connection before its answer was ready."""


@router.post(
    "/detect",
    summary="Find faces within a latency budget",
    responses=RESPONSES,
    response_class=Response,
    openapi_extra={"requestBody": _REQUEST_BODY, "parameters": described_parameters()},
)
async def detect(request: Request) -> Response:
    """The most accurate detector that can still finish in time looks for faces.

    The clock runs from the first byte of the request; upload, decoding, queue and inference all count. Drawing the
    annotated picture for `return=image` does not.

    Example: `curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' 'localhost:8000/detect?tier=interactive'`
    """
    services, context = services_of(request), context_of(request.scope)
    settings = services.settings
    query = read_query(request)
    budget = budget_of(query, request.headers.get(BUDGET_HEADER), settings.tiers, settings.default_tier)
    context.tier = budget.label
    refuse_unless_ready(services)
    try:
        data = await read_picture(
            request, max_bytes=settings.max_upload_bytes, timeout_seconds=settings.body_timeout_seconds
        )
        services.metrics.stage("receive", time.monotonic() - context.received)
        header = inspect(data, Limits(settings.max_pixels))
        context.notes["picture"] = f"{header.format} {header.width}x{header.height}"
        ask = ask_of(query, budget, context.received, settings)
        answer = await unless_client_leaves(request.receive, services.detector.detect(data, header, ask))
    except (ClientDisconnect, ClientGoneError) as gone:
        return client_left(context, gone, budget)

    total = time.monotonic() - context.received
    context.variant = answer.variant
    context.notes.update(variant=answer.variant, input=f"{answer.input_width}x{answer.input_height}")
    context.notes["faces"] = len(answer.scores)
    headers = answer_headers(answer, total * 1e3)
    if query.return_ == "json":
        body = answer_json(answer, total * 1e3, context.request_id)
        response = Response(body, media_type="application/json", headers=headers)
    else:
        response = await _picture_response(request, services, data, header, answer, headers)
    # Only now: a picture that could not be drawn was not answered.
    context.outcome = "ok" if total * 1e3 <= answer.budget_ms else "late"
    if context.outcome == "ok":
        context.in_time, context.worth = 1, answer.ap50 or 0.0
    services.metrics.answered(context.tier, total, answer.budget_ms / 1e3)
    return response


async def _picture_response(
    request: Request, services: Services, data: bytes, header: ImageHeader, answer: Answer, headers: dict[str, str]
) -> Response:
    image_format = preferred_format(request.headers.get("accept", ""))
    start = time.monotonic()
    loop = asyncio.get_running_loop()
    body = await loop.run_in_executor(services.drawer, annotated, data, header, answer, image_format)
    elapsed = time.monotonic() - start
    services.metrics.stage("annotate", elapsed)
    headers["Server-Timing"] += f", annotate;dur={elapsed * 1e3:.2f}"
    return Response(body, media_type=f"image/{image_format.lower()}", headers=headers)


def ask_of(query: DetectQuery, budget: Budget, received: float, settings: Settings) -> Ask:
    """What the query asks of the runtime. received: `time.monotonic()` at the request's first byte."""
    return Ask(
        budget_ms=budget.milliseconds,
        tier=budget.tier,
        received=received,
        on_infeasible=query.on_infeasible,
        variant=query.variant,
        long_side=query.long_side,
        min_score=query.min_score,
        default_min_score=settings.default_min_score,
        max_faces=query.max_faces,
        min_face=query.min_face,
    )


def client_left(context: RequestContext, gone: ClientDisconnect | ClientGoneError, budget: Budget) -> Response:
    """The end of a request whose client closed the connection: while it sent (disconnect), or while it waited, which
    was in vain once the budget had run out."""
    waited_ms = (time.monotonic() - context.received) * 1e3
    in_vain = isinstance(gone, ClientGoneError) and waited_ms > budget.milliseconds
    context.outcome = GONE_LATE if in_vain else "client_gone"
    return Response(status_code=CLIENT_GONE)


def refuse_unless_ready(services: Services) -> None:
    if services.state.draining:
        raise NotReadyError("The service is shutting down and takes no new requests. Try again in a moment.")
    if not services.detector.ready:
        raise NotReadyError(
            f"The service is not ready: {services.detector.status}. GET /health/ready tells when it is.",
            retry_after_s=2,
        )


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, and cancel it when the client closes the connection, so that nobody computes for nobody.

    In the caller's task: one of its own would cost the answer two more turns of the event loop.
    """
    task = asyncio.current_task()
    assert task is not None
    left = over = False

    def leave(watch: asyncio.Future[None]) -> None:
        nonlocal left
        if not over and not watch.cancelled():
            left = True
            task.cancel()

    watch = asyncio.ensure_future(_disconnected(receive))
    watch.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if left and task.uncancel() == 0:
            raise ClientGoneError from None
        raise
    finally:
        over = True  # `leave` may be on its way already
        watch.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
