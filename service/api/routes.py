"""A route without FastAPI's work between the router and the endpoint."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class PlainRoute(APIRoute):
    """For endpoints that take the request and return a response: in OpenAPI as any other, called without solving
    dependencies, which cost such an endpoint more than reading its query does."""

    def get_route_handler(self) -> Handler:
        return cast(Handler, self.endpoint)
