"""What a picture is decoded for, before it joins the queue: a pure function of predictions and of the budget's rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from service.repository.manifest import InputSize


class Option(NamedTuple):
    """One way to answer a request: an arm, by its number. before_ms: predicted decoding and fitting; infer_ms:
    predicted p99 of the engine.

    ap50 is 0 where it was not measured, so that an unmeasured variant is chosen only when nothing measured fits. Among
    the unmeasured, the larger input counts as the more accurate: a new member would else never be tried above its
    fastest size.
    """

    arm: int
    size: InputSize
    ap50: float
    before_ms: float
    infer_ms: float

    @property
    def total_ms(self) -> float:
        return self.before_ms + self.infer_ms


class Choice(NamedTuple):
    """predicted_ms: from now to the answer, waiting included. feasible: False where even this one will be late."""

    option: Option
    predicted_ms: float
    feasible: bool


def most_accurate(options: Sequence[Option], left_ms: float, wait_ms: float) -> Choice:
    """The option of highest AP.50 that is predicted to be on time; of equals, the faster.

    left_ms: what is left of the budget; wait_ms: predicted wait for the engine. Decoding runs beside other requests'
    inference, so the longer of the two counts. Where nothing fits, the fastest, marked infeasible. options: not empty.
    """
    timed = [(option, max(wait_ms, option.before_ms) + option.infer_ms) for option in options]
    on_time = [pair for pair in timed if pair[1] <= left_ms]
    if on_time:
        option, predicted = min(on_time, key=lambda pair: (*_rank(pair[0]), pair[1]))
        return Choice(option, predicted, feasible=True)
    option, predicted = min(timed, key=lambda pair: pair[1])
    return Choice(option, predicted, feasible=False)


def _rank(option: Option) -> tuple[float, int]:
    """Ascending, best first."""
    return -option.ap50, -option.size.long_side if option.ap50 <= 0 else 0
