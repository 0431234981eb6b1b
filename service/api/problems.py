"""Every error as `application/problem+json` (RFC 9457), with a sentence that a person can act on."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.api.context import RequestContext, context_of
from service.errors import AsfdError, BadParameterError, NoSuchPageError, WrongMethodError

MEDIA_TYPE = "application/problem+json"
_TYPE_BASE = "urn:asfd:problem:"


def problem_document(error: AsfdError, request_id: str) -> dict[str, Any]:
    return {
        "type": _TYPE_BASE + error.type_slug,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "request_id": request_id,
        **error.extra,
    }


def problem_body(error: AsfdError, request_id: str) -> bytes:
    document = problem_document(error, request_id)
    return json.dumps(document, ensure_ascii=False, default=str).encode("utf-8", "replace")


def answer_error(context: RequestContext, error: AsfdError) -> Response:
    """The answer to a request that ends with `error`, which the request's log line and metrics then show."""
    context.outcome = context.outcome or error.type_slug.replace("-", "_")
    context.notes.setdefault("problem", error.detail)
    body = problem_body(error, context.request_id)
    return Response(body, status_code=error.status, media_type=MEDIA_TYPE, headers=error.headers)


def validation_problem(error: ValidationError, known: Sequence[str]) -> BadParameterError:
    """The first complaint of pydantic about a query as a sentence; `known` lists the parameters that there are."""
    item = error.errors()[0]
    name = str(item["loc"][-1]) if item["loc"] else "request"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return BadParameterError(
            name,
            f"There is no query parameter {_short(name)}.{hint} Known parameters: {', '.join(known)}.",
            extra={"known": list(known)},
        )
    message = str(item["msg"]).removeprefix("Value error, ")
    given = f" (given: {_short(item['input'])})" if isinstance(item.get("input"), str | int | float) else ""
    return BadParameterError(name, f"{name}: {message[0].lower()}{message[1:]}{given}.")


def install(app: FastAPI) -> None:
    """Register the handlers. Whatever they do not catch is caught by the request middleware."""

    async def asfd_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, AsfdError)
        return answer_error(context_of(request.scope), error)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer_error(context_of(request.scope), _from_starlette(request, error))

    app.add_exception_handler(AsfdError, asfd_error)
    app.add_exception_handler(HTTPException, http_error)


def _from_starlette(request: Request, error: HTTPException) -> AsfdError:
    headers: Mapping[str, str] = error.headers or {}
    if error.status_code == 404:
        return NoSuchPageError(
            f"There is nothing at {_short(request.url.path)}. POST /detect finds faces; GET /docs lists the rest."
        )
    if error.status_code == 405:
        allowed = headers.get("Allow", headers.get("allow", ""))
        return WrongMethodError(
            f"{request.url.path} does not take {_short(request.method)}; it takes {allowed}.",
            headers={"Allow": allowed},
        )
    generic = AsfdError(str(error.detail), headers=dict(headers))
    generic.status, generic.title, generic.type_slug = error.status_code, "Request refused", "request-refused"
    return generic


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
