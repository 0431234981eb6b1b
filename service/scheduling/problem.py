"""What a scheduling policy sees, and what it answers: one queue, one engine, one decision at a time.

Times are seconds on one clock; latencies are milliseconds, as profiles have them. Policies are pure: the same input
gives the same decision, and no clock is read. A picture that several arms may answer carries them as bits of an
integer, so that what a batch has in common is one `&`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from service.repository.manifest import InputSize

Reason = Literal["on_time", "late", "idle"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to run a batch: a variant at an input size.

    ap50: what a picture answered in time is worth, 0..1; latency_ms[b - 1]: predicted p99 of a batch of b, ascending.
    """

    variant: str
    size: InputSize
    ap50: float
    latency_ms: tuple[float, ...]

    @property
    def max_batch(self) -> int:
        return len(self.latency_ms)

    def seconds(self, batch: int) -> float:
        """Predicted time of a batch."""
        return self.latency_ms[batch - 1] / 1e3


@dataclass(frozen=True, slots=True)
class Waiting:
    """A decoded picture that waits. number: ascends with arrival, unique; arms: bit k says that arm k may answer it.

    late_ok: a late answer is wanted rather than none; tier: its label, for policies that go by it.
    """

    number: int
    deadline: float
    arms: int
    late_ok: bool = False
    tier: str = ""


@dataclass(frozen=True, slots=True)
class Expected:
    """Arrivals to count on. rate: pictures a second; mix: recent (seconds from queue to deadline, arms), a sample."""

    rate: float = 0.0
    mix: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """run: numbers of the pictures that arm `arm` answers next, together; none means that nothing can be run.

    drop: numbers to be answered at once with an error: no arm can finish them in time, and they do not want to be late.
    A decision is valid where every picture of `run` allows the arm, there are at most its `max_batch`, and none is
    also dropped. reason: `late` where the batch is predicted to miss deadlines.
    """

    run: tuple[int, ...] = ()
    arm: int = -1
    drop: tuple[int, ...] = ()
    reason: Reason = "idle"


class Policy(Protocol):
    """Chooses what the idle engine does next."""

    @property
    def name(self) -> str: ...

    def decide(self, now: float, queue: Sequence[Waiting], arms: Sequence[Arm], expected: Expected) -> Decision:
        """queue: earliest deadline first, ties by number; every picture has an arm. The engine is idle at `now`."""
        ...
