"""Every failure that a client can be told about, as an exception that carries its own problem+json (RFC 9457).

Raise the class that fits with one sentence a person can act on; the HTTP layer turns it into an answer:

    raise InfeasibleError(budget_ms=5, predicted_ms=41.0, smallest_feasible_ms=44)

`extra` becomes members of the problem document, `headers` become response headers.
"""

from __future__ import annotations

import math
from typing import Any


class AsfdError(Exception):
    """Base of all errors with an HTTP status. `detail` says what was wrong, where, and what to do."""

    status: int = 500
    title: str = "Internal error"
    type_slug: str = "internal-error"

    def __init__(
        self, detail: str, *, extra: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra: dict[str, Any] = extra or {}
        self.headers: dict[str, str] = headers or {}


class UndecodableImageError(AsfdError):
    """The body is empty, truncated, damaged or no picture at all."""

    status = 400
    title = "The picture cannot be decoded"
    type_slug = "undecodable-image"


class MalformedRequestError(AsfdError):
    """The request itself is broken, such as a multipart body without its boundary."""

    status = 400
    title = "Malformed request"
    type_slug = "malformed-request"


class NoSuchPageError(AsfdError):
    status = 404
    title = "Not found"
    type_slug = "not-found"


class WrongMethodError(AsfdError):
    status = 405
    title = "Method not allowed"
    type_slug = "method-not-allowed"


class SlowBodyError(AsfdError):
    """The body did not arrive in time."""

    status = 408
    title = "The request body came too slowly"
    type_slug = "slow-body"


class TooLargeError(AsfdError):
    """Too many bytes (found while they stream in) or too many pixels (found in the header, before decoding)."""

    status = 413
    title = "Too large"
    type_slug = "too-large"


class UnsupportedTypeError(AsfdError):
    """A type of file, or a declared content type, that the service does not take."""

    status = 415
    title = "Unsupported type"
    type_slug = "unsupported-type"


class BadParameterError(AsfdError):
    """A query parameter, header or form field has a value that cannot be used; `parameter` names it."""

    status = 422
    title = "Bad parameter"
    type_slug = "bad-parameter"

    def __init__(self, parameter: str, detail: str, *, extra: dict[str, Any] | None = None) -> None:
        super().__init__(detail, extra={"parameter": parameter, **(extra or {})})
        self.parameter = parameter


class EngineFailureError(AsfdError):
    """The engine failed on a picture that was fine. The cause goes to the log, never to the client."""

    status = 500
    title = "The detector failed"
    type_slug = "engine-failure"


class _RetryLaterError(AsfdError):
    """A 503 with Retry-After in whole seconds, at least one."""

    status = 503

    def __init__(self, detail: str, *, retry_after_s: float = 1.0, extra: dict[str, Any] | None = None) -> None:
        seconds = max(1, math.ceil(retry_after_s))
        super().__init__(detail, extra=extra, headers={"Retry-After": str(seconds)})


class InfeasibleError(_RetryLaterError):
    """No variant can meet the budget. All figures in milliseconds."""

    title = "No detector can meet this budget"
    type_slug = "infeasible-budget"

    def __init__(
        self, *, budget_ms: float, predicted_ms: float, smallest_feasible_ms: float, retry_after_s: float = 1.0
    ) -> None:
        super().__init__(
            f"The budget is {budget_ms:g} ms, and the fastest detector is predicted to need {predicted_ms:.0f} ms. "
            f"Ask for at least {math.ceil(smallest_feasible_ms)} ms, or send on_infeasible=degrade to get it late.",
            retry_after_s=retry_after_s,
            extra={
                "budget_ms": budget_ms,
                "predicted_ms": round(predicted_ms, 1),
                "smallest_feasible_ms": math.ceil(smallest_feasible_ms),
            },
        )


class QueueFullError(_RetryLaterError):
    title = "The queue is full"
    type_slug = "queue-full"


class NotReadyError(_RetryLaterError):
    """The service is starting or draining."""

    title = "The service is not ready"
    type_slug = "not-ready"


class EngineLostError(_RetryLaterError):
    """The engine hangs, or its device is gone: this process answers nothing any more, and another one will."""

    title = "The engine is lost"
    type_slug = "engine-lost"


class DeadlinePassedError(AsfdError):
    """The budget ran out before an answer was there."""

    status = 504
    title = "The deadline passed"
    type_slug = "deadline-passed"
