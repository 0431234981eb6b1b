"""How many pictures to expect, and of which kind, from those that came."""

from __future__ import annotations

import math
from collections import deque

from service.scheduling.problem import Expected

MEMORY_S = 3.0
SAMPLE = 32
_SETTLED = 0.1


class ArrivalStatistics:
    """The rate as an exponentially weighted average over time, and the last pictures as a sample of the mix.

    No clock is read: `now` is the caller's, in seconds, and must not go back. The rate counts every arrival after the
    first with weight exp(-age / memory_s), over the integral of that weight since the first: for Poisson arrivals its
    expectation is the true rate from the start. Until a tenth of the memory has been seen, the rate is understated
    rather than guessed from a gap or two.
    """

    def __init__(self, memory_s: float = MEMORY_S, sample: int = SAMPLE) -> None:
        """memory_s: age at which an arrival counts 1/e; sample: pictures kept for the mix."""
        if memory_s <= 0 or sample < 1:
            raise ValueError(f"the memory ({memory_s:g} s) and the sample ({sample}) must be above 0")
        self._memory_s = memory_s
        self._mix: deque[tuple[float, int]] = deque(maxlen=sample)
        self._weight = 0.0
        self._first: float | None = None
        self._last = 0.0

    def observe(self, now: float, slack_s: float, arms: int) -> None:
        """A picture joined the queue at `now`, `slack_s` before its deadline. arms: bits of those that may answer."""
        if self._first is None:
            self._first = now
        else:
            self._weight = self._weight * math.exp((self._last - now) / self._memory_s) + 1.0
        self._last = now
        self._mix.append((slack_s, arms))

    def expected(self, now: float) -> Expected:
        """Pictures a second at `now`, and the mix of the last ones, oldest first."""
        if self._first is None:
            return Expected()
        weight = self._weight * math.exp((self._last - now) / self._memory_s)
        seen = max(-math.expm1((self._first - now) / self._memory_s), _SETTLED)
        return Expected(weight / (self._memory_s * seen), tuple(self._mix))
