"""The query parameters of /detect and /detect/batch, and the budget's header, read and checked by plain functions.

FastAPI could do it from the signature, at a third of all the time that a refusal takes; under overload that is the time
of the others. What it says of the parameters in the interactive documentation comes from the same model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from pydantic import ValidationError

from service.api.problems import validation_problem
from service.api.schemas import MAX_BUDGET_MS, DetectQuery
from service.errors import BadParameterError
from service.settings import CUSTOM_TIER

QUERY_PARAMETERS = tuple(field.alias or name for name, field in DetectQuery.model_fields.items())
BUDGET_HEADER = "X-Latency-Budget-Ms"
_NUMBERS = frozenset({"latency_ms", "min_score", "max_faces", "min_face", "long_side"})


def read_query(request: Request) -> DetectQuery:
    """Raises `BadParameterError` for a parameter that is unknown, repeated or cannot be used, or a repeated header.

    Like its value, a header that the query takes the place of is not looked at.
    """
    given = request.query_params.multi_items()
    values = dict(given)
    if len(values) < len(given):
        names = [name for name, _ in given]
        name = next(name for name in names if names.count(name) > 1)
        raise BadParameterError(name, f"The query has {name[:64]!r} {names.count(name)} times; give it once.")
    for name, value in given:
        if "_" in value and name in _NUMBERS:  # pydantic would take it as Python does: 1_0 is 10
            raise BadParameterError(name, f"{name}: input should be a number without '_' (given: {value[:40]!r}).")
    try:
        query = DetectQuery.model_validate(values, by_alias=True, by_name=False)
    except ValidationError as error:
        raise validation_problem(error, QUERY_PARAMETERS) from None
    if query.long_side is not None and query.variant is None:
        raise BadParameterError("long_side", "long_side only goes together with variant; otherwise the budget decides.")
    if query.tier is None and query.latency_ms is None:
        times = len(request.headers.getlist(BUDGET_HEADER))
        if times > 1:
            raise BadParameterError(BUDGET_HEADER, f"{BUDGET_HEADER} is there {times} times; give it once.")
    return query


def described_parameters() -> list[dict[str, Any]]:
    """The parameters as OpenAPI has them."""
    schema = DetectQuery.model_json_schema(by_alias=True)["properties"]
    query = [
        {"name": name, "in": "query", "required": False, "description": part["description"], "schema": part}
        for name, part in schema.items()
    ]
    budget = {
        "name": BUDGET_HEADER,
        "in": "header",
        "required": False,
        "description": "Budget in milliseconds for gateways; used where the query has neither tier nor latency_ms.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_BUDGET_MS},
    }
    return [*query, budget]


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


def _header_budget(value: str) -> float:
    try:
        budget = math.nan if "_" in value else float(value)  # Python takes 1_0 as 10
    except ValueError:
        budget = math.nan
    if not 0 < budget <= MAX_BUDGET_MS:  # false for NaN, too
        raise BadParameterError(
            BUDGET_HEADER,
            f"{BUDGET_HEADER} must be milliseconds above 0 and up to {MAX_BUDGET_MS:.0f} (given: {value[:40]!r}).",
        )
    return budget
