"""What is known of one request and of the whole server, in one place each."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

_SCOPE_KEY = "asfd.context"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(slots=True)
class RequestContext:
    """received: time.monotonic() when the request's head arrived; tier, variant: metric labels, "none" until known.

    pictures: those that the service is answerable for; in_time: those answered within the budget, and worth: the sum of
    the AP.50 of the detectors that did.
    """

    received: float
    request_id: str
    traceparent: str | None
    tier: str = "none"
    variant: str = "none"
    outcome: str = ""
    status: int = 0
    pictures: int = 1
    in_time: int = 0
    worth: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request's log line."""


@dataclass(slots=True)
class ServerState:
    """Shared by the middleware, the routes and the process that runs the server."""

    in_flight: int = 0
    body_bytes: int = 0
    """Of the bodies of all requests in flight, as far as they have arrived."""
    draining: bool = False
    fatal: str | None = None
    """Why the service can never become ready, once that is known."""


def new_context(scope: Scope) -> RequestContext:
    """Stamp the time, and take over the client's request id and trace where they are well-formed."""
    headers = {name: value for name, value in scope["headers"] if name in (b"x-request-id", b"traceparent")}
    request_id = headers.get(b"x-request-id", b"").decode("latin-1")
    traceparent = headers.get(b"traceparent", b"").decode("latin-1")
    context = RequestContext(
        received=time.monotonic(),
        request_id=request_id if _REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex,
        traceparent=traceparent if _TRACEPARENT.fullmatch(traceparent) else None,
    )
    scope[_SCOPE_KEY] = context
    return context


def context_of(scope: Scope) -> RequestContext:
    context = scope[_SCOPE_KEY]
    assert isinstance(context, RequestContext)
    return context
