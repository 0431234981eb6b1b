"""Arms and pictures for the tests of policies; time starts at `NOW`."""

from __future__ import annotations

from collections.abc import Sequence

from service.repository.manifest import InputSize
from service.scheduling.policies.common import slack_ms
from service.scheduling.problem import Arm, Waiting

NOW = 0.0  # so that whole milliseconds stay whole
SQUARE, WIDE, TALL = (InputSize(height=h, width=w) for h, w in ((640, 640), (480, 640), (640, 480)))


def arm(ap50: float, *latency_ms: float, name: str = "v", size: InputSize = SQUARE) -> Arm:
    return Arm(name, size, ap50, latency_ms)


def waiting(
    *slacks_ms: float, arms: int | Sequence[int] = 0b1111111, late_ok: bool = False, tier: str = ""
) -> list[Waiting]:
    """Pictures numbered from 0 whose deadlines are so many milliseconds away, ascending; arms: of all, or of each."""
    masks = [arms] * len(slacks_ms) if isinstance(arms, int) else arms
    return [
        Waiting(number, NOW + slack / 1e3, mask, late_ok, tier)
        for number, (slack, mask) in enumerate(zip(slacks_ms, masks, strict=True))
    ]


def soonest_ms(picture: Waiting, arms: Sequence[Arm]) -> float:
    return min(arm.latency_ms[0] for k, arm in enumerate(arms) if picture.arms >> k & 1)


def hopeful(queue: Sequence[Waiting], arms: Sequence[Arm], now: float) -> list[Waiting]:
    return [picture for picture in queue if slack_ms(now, picture) >= soonest_ms(picture, arms)]
