"""A build's progress as a sentence for `/health/ready` and the log: "building d0-fp16 for NVIDIA L4, 40 %"."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

_STEP = 5  # per cent between two sentences


@dataclass(slots=True)
class _Phase:
    name: str
    parent: str | None
    steps: int
    done: int = 0


class BuildStatus:
    """Hears of the builder's phases (`build.Progress`), from whatever thread, and says how far the outermost is.

    What runs inside a step of a phase counts as a part of that step. The builder has several outermost phases one after
    another and does not say how many, so the figure is that of the current one and may begin again.
    """

    def __init__(self, say: Callable[[str], None], what: str) -> None:
        self._say, self._what = say, what
        self._lock = threading.Lock()
        self._phases: list[_Phase] = []
        self._said = -1
        say(what)

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        with self._lock:
            if parent is None:
                self._phases.clear()
                self._said = -1
            self._phases.append(_Phase(phase, parent, max(steps, 1)))

    def step(self, phase: str, step: int) -> None:
        with self._lock:
            for one in self._phases:
                if one.name == phase:
                    one.done = min(step + 1, one.steps)
            per_cent = int(100 * self._fraction(None))
            due = per_cent >= self._said + _STEP or (per_cent == 100 and self._said < 100)
            if due:
                self._said = per_cent
        if due:
            self._say(f"{self._what}, {per_cent} %")

    def finish(self, phase: str) -> None:
        with self._lock:
            self._phases = [one for one in self._phases if one.name != phase]

    def _fraction(self, parent: str | None) -> float:
        """How much of the phases inside `parent` is done, 0 to 1; the last one that began counts."""
        inner = [one for one in self._phases if one.parent == parent]
        if not inner:
            return 0.0
        one = inner[-1]
        rest = self._fraction(one.name) if one.done < one.steps else 0.0
        return min((one.done + rest) / one.steps, 1.0)
