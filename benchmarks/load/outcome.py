"""What a run was worth, by the client's clock, in the terms of `service.simulation.results`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel

from benchmarks.load.client import Reply, Shot
from benchmarks.load.workload import Trace
from service.scheduling.policies import make_policy
from service.simulation.profile import SimProfile
from service.simulation.results import Result, summarise
from service.simulation.simulate import Setting, simulate

SHED = (503, 504)


class TierRow(BaseModel):
    """Of the requests of one tier."""

    requests: int
    attainment: float
    effective_ap: float


class Played(BaseModel):
    """What the client saw of a trace. All times in milliseconds.

    attainment: share of the requests answered on time by the client's clock; effective_ap: mean over all requests of
    the AP.50 of the variant that answered at its input size, 0 where the answer was late or there was none; late:
    answered after the deadline; dropped: told 503 or 504; failed: any other status, or none; goodput_per_s: answers on
    time a second, from the first arrival to the last of them; p50_ms, p99_ms: of the answers; refused_p99_ms: until
    503 was told, which a service that is not overloaded itself does at once; lag_ms_p99: how late the client itself
    was; arms: answers by variant and long side.
    """

    requests: int
    on_time: int
    late: int
    dropped: int
    failed: int
    attainment: float
    effective_ap: float
    answered_ap: float | None
    goodput_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    refused_p99_ms: float | None
    lag_ms_p99: float
    mean_batch: float | None
    statuses: dict[str, int]
    tiers: dict[str, TierRow]
    arms: dict[str, int]


def judge(shots: Sequence[Shot], replies: Sequence[Reply]) -> Played:
    """Both in the same order. Raises ValueError where they do not match, or there are none."""
    if not shots or len(shots) != len(replies):
        raise ValueError(f"{len(replies)} replies to {len(shots)} requests cannot be judged")
    answers = {k: reply.answer for k, reply in enumerate(replies) if reply.status == 200}
    on_time = {k for k in answers if replies[k].latency_ms <= shots[k].budget_ms}
    # A variant whose accuracy was never measured is worth nothing to a policy, nor here.
    ap50 = {k: float(answer["model"]["ap50"] or 0.0) for k, answer in answers.items()}
    worth = [ap50[k] if k in on_time else 0.0 for k in range(len(shots))]
    ends = [shots[k].at_s + (replies[k].lag_ms + replies[k].latency_ms) / 1e3 for k in on_time]
    arms = Counter(
        f"{m['variant']}@{max(m['input'].values())}" for m in (answer["model"] for answer in answers.values())
    )
    latencies = [replies[k].latency_ms for k in answers]
    dropped = sum(reply.status in SHED for reply in replies)
    tiers = {}
    for tier, _ in sorted({(shot.tier, shot.budget_ms) for shot in shots}, key=lambda pair: pair[1]):
        of = [k for k, shot in enumerate(shots) if shot.tier == tier]
        tiers[tier] = TierRow(
            requests=len(of),
            attainment=_rounded(sum(k in on_time for k in of) / len(of)),
            effective_ap=_rounded(sum(worth[k] for k in of) / len(of)),
        )
    return Played(
        requests=len(shots),
        on_time=len(on_time),
        late=len(answers) - len(on_time),
        dropped=dropped,
        failed=len(shots) - len(answers) - dropped,
        attainment=_rounded(len(on_time) / len(shots)),
        effective_ap=_rounded(sum(worth) / len(shots)),
        answered_ap=_rounded(sum(ap50.values()) / len(ap50)) if ap50 else None,
        goodput_per_s=_rounded(len(on_time) / max(max(ends) - shots[0].at_s, 1e-9)) if ends else 0.0,
        p50_ms=percentile(latencies, 50),
        p99_ms=percentile(latencies, 99),
        refused_p99_ms=percentile([reply.latency_ms for reply in replies if reply.status == SHED[0]], 99),
        lag_ms_p99=percentile([reply.lag_ms for reply in replies], 99) or 0.0,
        mean_batch=_mean_batch([int(answer["model"]["batch"]) for answer in answers.values()]),
        statuses={str(status): count for status, count in Counter(reply.status for reply in replies).most_common()},
        tiers=tiers,
        arms=dict(arms.most_common()),
    )


def _mean_batch(batches: Sequence[int]) -> float | None:
    """Pictures a run, from the batch that each picture was in."""
    return _rounded(len(batches) / sum(1 / batch for batch in batches)) if batches else None


def simulated(
    policy: str, trace: Trace, profile: SimProfile, setting: Setting, tiers_ms: dict[str, float],
    told: Callable[[int], None] | None = None,
) -> Result:  # fmt: skip
    """What the simulator says of the same trace. tiers_ms: the service's, for the policy that goes by them."""
    run = simulate(make_policy(policy, tiers_ms), trace.arrivals, profile, setting, told)
    return summarise(run, trace.arrivals, profile)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Rounded; None where there are no values."""
    return round(float(np.percentile(values, percent)), 3) if values else None


def _rounded(value: float) -> float:
    return round(value, 5)
