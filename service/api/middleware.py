"""The outermost layer: stamps the clock, names the request, counts it, logs one line, and lets no error through."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.context import RequestContext, ServerState, context_of, new_context
from service.api.problems import MEDIA_TYPE, answer_error, problem_body
from service.errors import AsfdError, QueueFullError

_LOG = logging.getLogger("asfd.request")

Endpoint = Callable[[Request], Awaitable[Response]]

# A client that still sends when the connection closes may never see the answer, so the rest of a refused body is read
# and dropped, within these bounds.
_DISCARD_BYTES = 64 * 1024 * 1024
_DISCARD_SECONDS = 2.0
_QUIET_PATHS = frozenset(("/health/live", "/health/ready", "/metrics"))


class RequestMiddleware:
    """Pure ASGI, so that it sees the request's first message and adds no copy of bodies.

    on_done: called once a request, after its answer was sent. direct: what answers POST to a path. FastAPI has these
    as routes too, for its documentation and for other methods, but its way to them costs the event loop as much as
    admission does. most_bytes: of the bodies of all requests in flight.
    """

    def __init__(
        self,
        app: ASGIApp,
        state: ServerState,
        on_done: Callable[[str, RequestContext], None],
        direct: Mapping[str, Endpoint],
        most_bytes: int,
    ) -> None:
        self._app = app
        self._state = state
        self._on_done = on_done
        self._direct = direct
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = new_context(scope)
        exchange = _Exchange(scope, receive, send, context, self._state, self._most_bytes)
        self._state.in_flight += 1
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # the server, which has a scope of its own, leaves the body out
        try:
            endpoint = self._direct.get(scope["path"]) if scope["method"] == "POST" else None
            if endpoint is None:
                await self._app(scope, exchange.receive, exchange.send)
            else:
                await _answer(endpoint, scope, exchange)
        except Exception:
            _LOG.exception("request %s failed", context.request_id)
            context.outcome = "internal_error"
            await exchange.send_failure()
        except asyncio.CancelledError:
            context.outcome = context.outcome or "cancelled"
            raise
        finally:
            self._state.in_flight -= 1
            self._state.body_bytes -= exchange.body_bytes
            self._on_done(scope["path"], context)
            _log_line(scope, context)


class _Exchange:
    """One request's `receive` and `send`, watched."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, context: RequestContext, state: ServerState, most_bytes: int
    ) -> None:
        self._receive = receive
        self._send = send
        self._context = context
        self._state = state
        self._most_bytes = most_bytes
        self.body_bytes = 0
        self._started = False
        headers = dict(scope["headers"])
        self._body_left = b"content-length" in headers or b"transfer-encoding" in headers
        # Such a client waits for a go-ahead; refused, it never sends the body.
        self._waits_for_go_ahead = b"expect" in headers

    async def receive(self) -> Message:
        """Raises `QueueFullError` where bodies fill the memory that they may have, and this one more than its share."""
        message = await self._next()
        count = len(message.get("body", b""))
        self.body_bytes += count
        self._state.body_bytes += count
        share = self._most_bytes / self._state.in_flight
        if self._state.body_bytes > self._most_bytes and self.body_bytes > share:
            raise QueueFullError(
                f"The service holds as many bytes of pictures as it can ({self._most_bytes / 2**20:g} MiB). "
                "Try again shortly, or send smaller pictures.",
                retry_after_s=1.0,
            )
        return message

    async def _next(self) -> Message:
        message = await self._receive()
        self._waits_for_go_ahead = False
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_left = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            self._context.status = message["status"]
            if message["status"] >= 400 and message["status"] != 408:
                await self._discard_body()
            extra = [
                (b"x-request-id", self._context.request_id.encode("latin-1")),
                (b"x-content-type-options", b"nosniff"),
            ]
            if self._context.traceparent is not None:
                extra.append((b"traceparent", self._context.traceparent.encode("latin-1")))
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await self._send(message)

    async def send_failure(self) -> None:
        if self._started:
            return  # half an answer is out; the server closes the connection
        error = AsfdError("Something failed here that is not your fault. The log has it under the request id.")
        body = problem_body(error, self._context.request_id)
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def _discard_body(self) -> None:
        if not self._body_left or self._waits_for_go_ahead:
            return
        left = _DISCARD_BYTES
        try:
            async with asyncio.timeout(_DISCARD_SECONDS):
                while self._body_left and left > 0:
                    message = await self._next()
                    left -= len(message.get("body", b""))
        except TimeoutError:
            pass


async def _answer(endpoint: Endpoint, scope: Scope, exchange: _Exchange) -> None:
    try:
        response = await endpoint(Request(scope, exchange.receive))
    except AsfdError as error:
        response = answer_error(context_of(scope), error)
    await response(scope, exchange.receive, exchange.send)


def _log_line(scope: Scope, context: RequestContext) -> None:
    level = logging.DEBUG if scope["path"] in _QUIET_PATHS else logging.INFO
    if not _LOG.isEnabledFor(level):
        return
    line = {
        "request_id": context.request_id,
        "method": scope["method"],
        "path": scope["path"],
        "status": context.status,
        "ms": round((time.monotonic() - context.received) * 1e3, 1),
        **({"outcome": context.outcome} if context.outcome else {}),
        **({"trace_id": context.traceparent.split("-")[1]} if context.traceparent else {}),
        **context.notes,
    }
    # As JSON, because a path may hold line breaks that would forge log lines.
    _LOG.log(level, "%s", json.dumps(line, default=str))
