"""How long a batch will take: the profile of the start, corrected by what is seen, with a margin that learns.

What is tracked is the ratio of the measured time to the profile's p99. Contention, a hot processor or a wrong profile
move the ratios of all arms alike, so an arm that has not run lately borrows those of the others; an arm that has run
often enough goes by its own. Old observations fade, or a slow spell would never be found to be over.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from service.repository.manifest import InputSize

Key = tuple[str, int, int]
"""Variant, height and width; all batch sizes share one ratio."""

MISS_TARGET = 0.01
"""Share of runs that may take longer than predicted: predictions stand for p99."""

_WINDOW = 100  # runs that are looked back at, of one arm and of all
_MEMORY_S = 120.0
_TRUSTED = 30  # runs after which an arm goes by its own
_ENOUGH = 5  # runs of any arms after which the others believe them
_BORROWED = 0.9  # the quantile of all runs that an arm without its own goes by
# One miss raises the margin by 2 %, and 99 runs in time take it back: it rests where one run in a hundred misses.
_STEP = math.log(1.02)
_MARGIN = (1.0, 2.0)


class Correction(BaseModel):
    """What is kept between starts beside the profile it corrects. ratios: recent measured over profile's p99, by
    `variant/HxW`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    margin: float = Field(default=1.0, ge=_MARGIN[0], le=_MARGIN[1])
    ratios: dict[str, tuple[float, ...]] = {}


@dataclass
class Prediction:
    """Milliseconds of (variant, size, batch). base: the profile's p99, by key, ascending with the batch.

    `now` is passed in, in seconds, so that it can be tested and simulated. version: grows whenever predictions change.
    """

    base: Mapping[Key, tuple[float, ...]]
    margin: float = 1.0
    version: int = 0
    _own: dict[Key, deque[tuple[float, float]]] = field(default_factory=dict)
    _all: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _shared: tuple[int, float, float] = (-1, 0.0, 1.0)  # version, time, and the ratio that held then
    _log_margin: float = field(init=False)

    def __post_init__(self) -> None:
        self._log_margin = math.log(self.margin)

    def latencies_ms(self, variant: str, size: InputSize, now: float) -> tuple[float, ...]:
        """Predicted p99 for a batch of 1, 2, ..."""
        key = (variant, size.height, size.width)
        factor = self._ratio(key, now) * self.margin
        return tuple(ms * factor for ms in self.base[key])

    def observe(self, variant: str, size: InputSize, batch: int, measured_ms: float, now: float) -> float:
        """Take note of a run; returns what had been predicted for it, in ms."""
        key = (variant, size.height, size.width)
        predicted = self.latencies_ms(variant, size, now)[batch - 1]
        ratio = measured_ms / self.base[key][batch - 1]
        self._own.setdefault(key, deque(maxlen=_WINDOW)).append((now, ratio))
        self._all.append((now, ratio))
        self._log_margin += _STEP * ((measured_ms > predicted) - MISS_TARGET) / (1 - MISS_TARGET)
        self._log_margin = min(max(self._log_margin, math.log(_MARGIN[0])), math.log(_MARGIN[1]))
        self.margin = math.exp(self._log_margin)
        self.version += 1
        return predicted

    def runs(self, variant: str, size: InputSize) -> int:
        """Runs seen, at most as many as are looked back at."""
        return len(self._own.get((variant, size.height, size.width), ()))

    def _ratio(self, key: Key, now: float) -> float:
        own = [ratio for at, ratio in self._own.get(key, ()) if at >= now - _MEMORY_S]
        trust = min(len(own) / _TRUSTED, 1.0)
        known = trust * _quantile(own, 1 - MISS_TARGET) if own else 0.0
        return known if trust == 1.0 else known + (1 - trust) * self._borrowed(now)

    def _borrowed(self, now: float) -> float:
        """An arm with few runs takes bad news of the others, once there are several, but not good news: that may be due
        to their size. A single outlier, of its own or of another, moves it little."""
        if self._shared[:2] != (self.version, now):
            every = [ratio for at, ratio in self._all if at >= now - _MEMORY_S]
            value = max(1.0, _quantile(every, _BORROWED)) if len(every) >= _ENOUGH else 1.0
            self._shared = (self.version, now, value)
        return self._shared[2]

    def correction(self, key: str) -> Correction:
        """What to keep for the next start."""
        ratios = {f"{k[0]}/{k[1]}x{k[2]}": tuple(round(r, 4) for _, r in seen) for k, seen in self._own.items()}
        return Correction(key=key, margin=self.margin, ratios=ratios)

    def resume(self, kept: Correction, now: float) -> None:
        """Start from what an earlier process saw, as if it had been seen just now; it fades like the rest."""
        for key in self.base:
            for ratio in kept.ratios.get(f"{key[0]}/{key[1]}x{key[2]}", ()):
                self._own.setdefault(key, deque(maxlen=_WINDOW)).append((now, ratio))
        self.margin = kept.margin
        self._log_margin = math.log(kept.margin)
        self.version += 1


def _quantile(ratios: list[float], share: float) -> float:
    """The smallest ratio that at least `share` of them do not exceed."""
    return sorted(ratios)[math.ceil(share * len(ratios)) - 1]
