"""POST /detect/batch: several pictures, one budget."""

from __future__ import annotations

import json
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from service.api.answers import answer_document
from service.api.context import context_of
from service.api.deps import services_of
from service.api.detect import (
    PROBLEM_RESPONSES,
    ClientGoneError,
    ask_of,
    client_left,
    refuse_unless_ready,
    unless_client_leaves,
)
from service.api.intake import FIELD, Part, read_pictures
from service.api.problems import problem_document
from service.api.query import BUDGET_HEADER, budget_of, described_parameters, read_query
from service.api.schemas import BatchAnswer
from service.contract import Answer
from service.errors import AsfdError, BadParameterError
from service.imaging.decode import ImageHeader, Limits, inspect

router = APIRouter()

_REQUEST_BODY = {
    "required": True,
    "description": f"A form with a field `{FIELD}` for each picture.",
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        }
    },
}


@router.post(
    "/detect/batch",
    summary="Find faces in several pictures within one latency budget",
    responses={
        200: {"model": BatchAnswer, "description": "A result for each picture, in order: its faces, or a problem"},
        **PROBLEM_RESPONSES,
    },
    response_class=Response,
    openapi_extra={"requestBody": _REQUEST_BODY, "parameters": described_parameters()},
)
async def detect_batch(request: Request) -> Response:
    """As /detect, for up to `ASFD_MAX_BATCH_PICTURES` pictures that share one budget.

    A picture that cannot be read, or that ran out of time, has a problem in its place and does not fail the others.
    Whether the budget can be met is decided for all pictures together: with `on_infeasible=reject` all are refused.

    Example: `curl -F image=@one.jpg -F image=@two.jpg 'localhost:8000/detect/batch?latency_ms=2000'`
    """
    services, context = services_of(request), context_of(request.scope)
    settings = services.settings
    query = read_query(request)
    budget = budget_of(query, request.headers.get(BUDGET_HEADER), settings.tiers, settings.default_tier)
    context.tier = budget.label
    if query.return_ != "json":
        raise BadParameterError("return", "Several pictures are answered as JSON only; post one to /detect to see it.")
    refuse_unless_ready(services)
    try:
        parts = await read_pictures(
            request,
            max_bytes=settings.max_upload_bytes,
            max_total=settings.max_batch_upload_bytes,
            most=min(settings.max_batch_pictures, settings.queue_limit),
            timeout_seconds=settings.body_timeout_seconds,
        )
        services.metrics.stage("receive", time.monotonic() - context.received)
        context.notes["pictures"] = len(parts)
        read = [_inspected(part, Limits(settings.max_pixels)) for part in parts]
        good = [
            (part.data, header) for part, header in zip(parts, read, strict=True) if isinstance(header, ImageHeader)
        ]
        context.pictures = len(good)  # should all be refused; a picture that cannot be read is its sender's fault
        ask = ask_of(query, budget, context.received, settings)
        answers: list[Answer | AsfdError] = []
        if good:
            answers = await unless_client_leaves(request.receive, services.detector.detect_all(good, ask))
    except (ClientDisconnect, ClientGoneError) as gone:
        return client_left(context, gone, budget)

    total = time.monotonic() - context.received
    left = iter(answers)
    results = [header if isinstance(header, AsfdError) else next(left) for header in read]
    found = [one for one in results if isinstance(one, Answer)]
    context.variant = found[0].variant if len({one.variant for one in found}) == 1 else "none"
    late = total * 1e3 > ask.budget_ms
    context.outcome = "late" if late else "ok" if len(found) == len(results) else "partial"
    # A picture that cannot be read is its sender's fault.
    context.pictures = len(found) + sum(isinstance(one, AsfdError) and one.status >= 500 for one in results)
    if not late:
        context.in_time, context.worth = len(found), sum(one.ap50 or 0.0 for one in found)
    context.notes["faces"] = sum(len(one.scores) for one in found)
    for one in found:
        services.metrics.answered(context.tier, total, one.budget_ms / 1e3)
    document: dict[str, Any] = {
        "results": [
            {"name": part.name, **_result(one, total * 1e3, context.request_id)}
            for part, one in zip(parts, results, strict=True)
        ],
        "budget_ms": ask.budget_ms,
        "total_ms": round(total * 1e3, 2),
        "deadline_met": not late,
        "request_id": context.request_id,
    }
    headers = {"Cache-Control": "no-store", "Server-Timing": f"total;dur={total * 1e3:.2f}"}
    return Response(json.dumps(document, separators=(",", ":")), media_type="application/json", headers=headers)


def _inspected(part: Part, limits: Limits) -> ImageHeader | AsfdError:
    try:
        return inspect(part.data, limits)
    except AsfdError as error:
        return error


def _result(one: Answer | AsfdError, total_ms: float, request_id: str) -> dict[str, Any]:
    if isinstance(one, AsfdError):
        return {"problem": problem_document(one, request_id)}
    return answer_document(one, total_ms)
