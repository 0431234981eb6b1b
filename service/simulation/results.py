"""What a run was worth: attainment, effective AP, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.simulation.profile import SimProfile
from service.simulation.simulate import End, Run
from service.simulation.trace import Arrival, tier_budgets


@dataclass(frozen=True, slots=True)
class TierResult:
    """Of the requests of one tier."""

    requests: int
    on_time: int
    attainment: float
    effective_ap: float


@dataclass(frozen=True, slots=True)
class Result:
    """Of one policy on one trace.

    attainment: on_time / requests; effective_ap: mean over all requests of the AP.50 of the arm that answered, 0 where
    the answer was late or there was none; answered_ap: mean over the answers, late ones too, None without any;
    goodput_per_s: answers on time a second, from the first arrival to the last end; utilisation: share of that time in
    which the engine ran a batch; wait_ms: of what was answered, from decoded to started. Times in milliseconds.
    """

    policy: str
    requests: int
    on_time: int
    late: int
    dropped: dict[str, int]
    attainment: float
    effective_ap: float
    answered_ap: float | None
    goodput_per_s: float
    mean_batch: float
    utilisation: float
    wait_ms_mean: float
    wait_ms_p99: float
    decisions: int
    decision_ms_p50: float
    decision_ms_p99: float
    tiers: dict[str, TierResult]
    arms: dict[str, int]


def summarise(run: Run, trace: Sequence[Arrival], profile: SimProfile) -> Result:
    """tiers: shortest budget first; arms: answers of each variant and long side, most first.

    Raises ValueError where the trace is empty.
    """
    if not trace or len(trace) != len(run.ends):
        raise ValueError(f"a result needs as many ends as arrivals, and one at least: {len(run.ends)}, {len(trace)}")
    worth = [_worth(end, profile) for end in run.ends]
    answers = [end for end in run.ends if end.outcome != "dropped"]
    outcomes = Counter(end.outcome for end in run.ends)
    span = max(max(end.at_s for end in run.ends) - trace[0].at_s, 1e-9)
    waits, decisions = ([seconds * 1e3 for seconds in of] for of in ([e.wait_s for e in answers], run.decision_s))
    used = Counter(f"{profile.arms[end.arm].variant}@{profile.arms[end.arm].size.long_side}" for end in answers)
    tiers = {}
    for tier, _ in sorted(tier_budgets(trace).items(), key=lambda item: item[1]):
        of = [k for k, arrival in enumerate(trace) if arrival.tier == tier]
        good = sum(run.ends[k].outcome == "on_time" for k in of)
        tiers[tier] = TierResult(len(of), good, good / len(of), sum(worth[k] for k in of) / len(of))
    return Result(
        policy=run.policy,
        requests=len(trace),
        on_time=outcomes["on_time"],
        late=outcomes["late"],
        dropped=dict(Counter(str(end.why) for end in run.ends if end.outcome == "dropped").most_common()),
        attainment=outcomes["on_time"] / len(trace),
        effective_ap=sum(worth) / len(trace),
        answered_ap=sum(profile.arms[end.arm].ap50 for end in answers) / len(answers) if answers else None,
        goodput_per_s=outcomes["on_time"] / span,
        mean_batch=sum(b.pictures for b in run.batches) / len(run.batches) if run.batches else 0.0,
        utilisation=sum(batch.seconds for batch in run.batches) / span,
        wait_ms_mean=sum(waits) / len(waits) if waits else 0.0,
        wait_ms_p99=_percentile(waits, 99),
        decisions=len(decisions),
        decision_ms_p50=_percentile(decisions, 50),
        decision_ms_p99=_percentile(decisions, 99),
        tiers=tiers,
        arms=dict(used.most_common()),
    )


def _worth(end: End, profile: SimProfile) -> float:
    return profile.arms[end.arm].ap50 if end.outcome == "on_time" else 0.0


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else 0.0
