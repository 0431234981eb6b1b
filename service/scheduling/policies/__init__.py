"""Policies by name. Adding one means one file here and one line below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from service.scheduling.policies.fixed import Fixed
from service.scheduling.policies.look_ahead import LookAhead
from service.scheduling.policies.max_acc import MaxAcc
from service.scheduling.policies.max_batch import MaxBatch
from service.scheduling.policies.roll_out import RollOut
from service.scheduling.policies.slack_fit import SlackFit
from service.scheduling.problem import Policy

POLICIES: Mapping[str, Callable[..., Policy]] = MappingProxyType(
    {
        "fixed": Fixed,
        "max_acc": MaxAcc,
        "max_batch": MaxBatch,
        "slack_fit": SlackFit,
        "look_ahead": LookAhead,
        "roll_out": RollOut,
    }
)
"""name -> what makes the policy; every one works without arguments."""


def make_policy(name: str, tiers_ms: Mapping[str, float]) -> Policy:
    """A policy by name; tiers_ms: budgets by tier, for the one that goes by them."""
    return Fixed(tiers_ms=tiers_ms) if name == "fixed" else POLICIES[name]()
