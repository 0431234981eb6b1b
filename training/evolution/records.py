"""What a search knows about paths, and which of them nothing faster equals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict

from training.supernet.path import SinglePath

Evaluate = Callable[[Sequence[SinglePath]], Sequence[float]]
Latency = Callable[[SinglePath], float]
Origin = Literal["initial", "mutation", "crossover", "fresh", "random"]


class Record(BaseModel):
    """One candidate of one search. generation: 0 is the first; budget_ms: of that search; origin: how the candidate
    came to be, where `random` is all that a random search draws."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    latency_ms: float
    ap50: float
    generation: int
    budget_ms: float
    origin: Origin

    def single(self) -> SinglePath:
        """The path itself."""
        return SinglePath.parse(self.path)


@dataclass
class Known:
    """Values by path, as `str` prints it: AP.50 in 0..1, and milliseconds. Shared by all searches of a supernet, so
    that nothing is evaluated or measured twice. Illegal candidates have a latency alone."""

    ap50: dict[str, float] = field(default_factory=dict)
    latency: dict[str, float] = field(default_factory=dict)

    def latency_of(self, path: SinglePath, measure: Latency) -> float:
        """Milliseconds, measured where they are not known. Raises ValueError where they are no positive number."""
        name = str(path)
        if name not in self.latency:
            value = float(measure(path))
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"the latency of {name} was measured as {value} ms, which it cannot be")
            self.latency[name] = value
        return self.latency[name]

    def evaluate(self, paths: Sequence[SinglePath], evaluate: Evaluate) -> None:
        """Fill in the AP.50 of the paths that have none yet. Raises ValueError where an AP is no number in 0..1."""
        missing = [path for path in paths if str(path) not in self.ap50]
        if not missing:
            return
        values = [float(value) for value in evaluate(missing)]
        if len(values) != len(missing):
            raise ValueError(f"{len(missing)} candidates were to be evaluated, and {len(values)} values came back")
        for path, value in zip(missing, values, strict=True):
            if not 0 <= value <= 1:
                raise ValueError(f"the AP.50 of {path} is {value}, which is not within 0 and 1")
        self.ap50.update({str(path): value for path, value in zip(missing, values, strict=True)})


def front(history: Iterable[Record]) -> list[Record]:
    """The records that none equals or beats in both AP.50 and latency, fastest first; of equal ones, the first."""
    kept: list[Record] = []
    for record in sorted(history, key=lambda one: (one.latency_ms, -one.ap50)):
        if not kept or record.ap50 > kept[-1].ap50:
            kept.append(record)
    return kept
