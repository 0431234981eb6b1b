"""What routes are given, as `Annotated` aliases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from fastapi import Depends, Header, Query, Request

from service.api.context import RequestContext, ServerState, context_of
from service.api.metrics import Metrics
from service.api.schemas import MAX_BUDGET_MS, DetectQuery
from service.contract import Answer, Ask
from service.errors import AsfdError, BadParameterError
from service.imaging.decode import ImageHeader
from service.settings import CUSTOM_TIER, Settings

QUERY_PARAMETERS = tuple(field.alias or name for name, field in DetectQuery.model_fields.items())
BUDGET_HEADER = "X-Latency-Budget-Ms"


class Detector(Protocol):
    """What the HTTP layer needs of `service.runtime.Runtime`."""

    @property
    def ready(self) -> bool: ...
    @property
    def status(self) -> str: ...
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


def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


def _context(request: Request) -> RequestContext:
    return context_of(request.scope)


def _no_repeats(request: Request) -> None:
    # Runs before the query is validated, so that a validation problem can list the names.
    request.state.query_parameters = QUERY_PARAMETERS
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if names.count(name) > 1:
            raise BadParameterError(name, f"The query has {name[:64]!r} {names.count(name)} times; give it once.")


ServicesDep = Annotated[Services, Depends(_services)]
ContextDep = Annotated[RequestContext, Depends(_context)]
QueryDep = Annotated[DetectQuery, Query()]
BudgetHeader = Annotated[
    str | None,
    Header(
        alias=BUDGET_HEADER,
        description="Budget in milliseconds for gateways; used where the query has neither tier nor latency_ms.",
    ),
]
no_repeats = Depends(_no_repeats)


@dataclass(frozen=True, slots=True)
class Budget:
    """milliseconds; tier: its name, or None for a budget of the client's own."""

    milliseconds: float
    tier: str | None

    @property
    def label(self) -> str:
        """Bounded metric label."""
        return self.tier or CUSTOM_TIER


def budget_of(query: DetectQuery, header: str | None, tiers: Mapping[str, float], default_tier: str) -> Budget:
    """Query wins over header, header over the default tier. Raises `BadParameterError`."""
    if query.tier is not None and query.latency_ms is not None:
        raise BadParameterError(
            "latency_ms", "tier and latency_ms exclude each other: name a tier, or give a budget of your own."
        )
    if query.tier is not None:
        if query.tier not in tiers:
            raise BadParameterError(
                "tier",
                f"There is no tier {query.tier[:64]!r}. Tiers: {', '.join(tiers)}.",
                extra={"known": list(tiers)},
            )
        return Budget(tiers[query.tier], query.tier)
    if query.latency_ms is not None:
        return Budget(query.latency_ms, None)
    if header is not None:
        return Budget(_header_budget(header), None)
    return Budget(tiers[default_tier], default_tier)


def check_pins(query: DetectQuery) -> None:
    """Refuse a pinned size without a pinned variant."""
    if query.long_side is not None and query.variant is None:
        raise BadParameterError("long_side", "long_side only goes together with variant; otherwise the budget decides.")


def _header_budget(value: str) -> float:
    try:
        budget = float(value)
    except ValueError:
        budget = math.nan
    if not 0 < budget <= MAX_BUDGET_MS:  # false for NaN, too
        raise BadParameterError(
            BUDGET_HEADER,
            f"{BUDGET_HEADER} must be milliseconds above 0 and up to {MAX_BUDGET_MS:.0f} (given: {value[:40]!r}).",
        )
    return budget
