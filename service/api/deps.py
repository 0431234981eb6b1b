"""What an app is made of, and how routes come by it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from fastapi import Depends, Request

from service.api.context import ServerState
from service.api.metrics import Metrics
from service.contract import Answer, Ask
from service.errors import AsfdError
from service.imaging.decode import ImageHeader
from service.settings import Settings


class Detector(Protocol):
    """What the HTTP layer needs of `service.runtime.Runtime`."""

    @property
    def ready(self) -> bool: ...
    @property
    def status(self) -> str: ...
    @property
    def failure(self) -> str | None: ...
    @property
    def queue_length(self) -> int: ...
    @property
    def variants(self) -> Any: ...
    async def start(self) -> None: ...
    async def detect(self, data: bytes, header: ImageHeader, ask: Ask) -> Answer: ...
    async def detect_all(self, pictures: Sequence[tuple[bytes, ImageHeader]], ask: Ask) -> list[Answer | AsfdError]: ...
    async def drain(self, seconds: float) -> None: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Services:
    """Everything one app is made of; kept at `app.state.services`, nothing is global."""

    settings: Settings
    detector: Detector
    metrics: Metrics
    state: ServerState
    drawer: Executor
    """Draws pictures, one at a time: each may take hundreds of megabytes, and no queue counts them."""


def services_of(request: Request) -> Services:
    """The services of the app that got this request."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


async def _services(request: Request) -> Services:
    # Not `services_of` itself: what is no coroutine is run in a thread, which takes longer than most routes.
    return services_of(request)


ServicesDep = Annotated[Services, Depends(_services)]
