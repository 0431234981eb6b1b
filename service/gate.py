"""The gate: which pictures are let in, what they are decoded for, and who is told that it cannot be done."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from service import profiling
from service.contract import Ask
from service.errors import BadParameterError, InfeasibleError, QueueFullError
from service.imaging.decode import Decoded, ImageHeader
from service.imaging.sniff import Format
from service.letterbox import Fitted
from service.models import Models
from service.observer import Observer
from service.repository.manifest import InputSize
from service.scheduling.admission import Demand, admit, most_late
from service.scheduling.arrivals import ArrivalStatistics
from service.scheduling.selection import Option, most_accurate
from service.settings import Settings


@dataclass(slots=True)
class Picture:
    """One picture inside. arms: bits of those that may answer it; decode_for: the largest input size that may be run;
    fit_for: the one that it is fitted to before that is decided; kind: of its budget; before_ms: predicted decoding;
    late: let in without hope of being on time.
    """

    number: int
    data: bytes
    header: ImageHeader
    arms: int
    decode_for: InputSize
    fit_for: InputSize
    kind: int
    before_ms: float
    late: bool
    decoded: Decoded | None = None
    fitted: Fitted | None = None
    decode_ms: float = 0.0


class Gate:
    """Knows all pictures inside. All methods belong to one event loop."""

    def __init__(self, models: Models, settings: Settings, observer: Observer) -> None:
        self._models, self._settings, self._observer = models, settings, observer
        # Of everything that is asked for: a policy that knew only of what was let in would never see the tight requests
        # that its own long runs keep out.
        self.statistics = ArrivalStatistics()
        self._numbers = itertools.count()
        # Of the pictures inside that are to be on time and do not run yet.
        self._demands: dict[int, Demand] = {}
        # Long side of the last run of a picture, by the kind of its budget.
        self._sides: dict[int, int] = {}
        self._late = 0
        self._decoding_ms = 0.0
        self.inside = 0
        self._ways = lru_cache(maxsize=4096)(self._ways_of)

    def starts(self, picture: Picture, size: InputSize) -> None:
        """The engine runs it now, at that input size."""
        self._demands.pop(picture.number, None)
        self._sides[picture.kind] = size.long_side

    def decoded(self, picture: Picture) -> None:
        """It does not wait for a decoder any more, whatever came of it."""
        self._decoding_ms -= picture.before_ms

    def leaves(self, picture: Picture) -> None:
        """It has its end."""
        self._demands.pop(picture.number, None)
        self.inside -= 1
        self._late -= picture.late

    def shed(self, reason: str, count: int = 1) -> None:
        for _ in range(count):
            self._observer.shed(reason)

    def let_in(self, pictures: Sequence[tuple[bytes, ImageHeader]], ask: Ask, free_at: float) -> list[Picture]:
        """Admit all pictures of a request or none. free_at: when the engine will be free, `time.monotonic()` seconds.

        Raises `BadParameterError`, `QueueFullError` and `InfeasibleError`.
        """
        now, models = time.monotonic(), self._models
        options = [self._options(header, ask, len(pictures)) for _, header in pictures]
        for (_, header), ways in zip(pictures, options, strict=True):
            decoding = min(way.before_ms for way in ways) / 1e3
            self.statistics.observe(now, ask.deadline - now - decoding, self._mask(header, ask))
        if self.inside + len(pictures) > self._settings.queue_limit:
            self.shed("queue_full", len(pictures))
            raise QueueFullError(
                f"{self.inside} pictures are inside already, of {self._settings.queue_limit} at most. "
                "Try again shortly.",
                retry_after_s=self.backlog_s(free_at),
            )
        present = list(self._demands.values())
        on_time, ahead_ms = True, self._decoding_ms
        starts: list[float] = []  # when each would be run, on its fastest arm
        for ways in options:
            best = min(ways, key=lambda way: way.total_ms)
            ahead_ms += best.before_ms
            # Others may be decoded first, or this one while the engine runs.
            ready = now + max(best.before_ms, ahead_ms / self._settings.decode_threads) / 1e3
            seconds = best.infer_ms / len(pictures) / 1e3
            typical = seconds * models.typical(best.arm)
            demand = Demand(ask.deadline, ready, typical, seconds - typical)
            found = admit(demand, present, free_at)
            starts.append(found.finish - seconds)
            on_time = on_time and found.on_time and found.harmless
            present.append(demand)
        late = not on_time
        demands = present[len(present) - len(pictures) :]
        if late:
            self._refuse(ask, self._behind(demands, free_at), free_at, len(pictures))
        kind = round(math.log2(ask.budget_ms))
        admitted = []
        for (data, header), ways, demand in zip(pictures, options, demands, strict=True):
            wait_ms = 0.0 if late else max(starts[0] - now, 0.0) * 1e3
            choice = most_accurate(ways, ask.left_ms(), wait_ms)
            mask = self._mask(header, ask, choice.option.size.long_side)
            # What was decoded for one size serves every smaller one, should time run short meanwhile.
            size = choice.option.size
            picture = Picture(
                next(self._numbers), data, header, mask, size, self._likely(kind, ways, size), kind,
                choice.option.before_ms, late,
            )  # fmt: skip
            if not late:
                self._demands[picture.number] = demand
            self._decoding_ms += picture.before_ms
            admitted.append(picture)
        self.inside += len(admitted)
        self._late += late * len(admitted)
        return admitted

    def _likely(self, kind: int, ways: Sequence[Option], most: InputSize) -> InputSize:
        """The size at which it will probably be run, up to `most`: that of the last one of its kind, since under load
        the policy gives less than a budget would allow. A wrong guess costs a second fitting, on the engine's thread.
        """
        side = self._sides.get(kind, most.long_side)
        if side >= most.long_side:
            return most
        return next((way.size for way in ways if way.size.long_side == side), most)

    def _mask(self, header: ImageHeader, ask: Ask, most: int = 1 << 30) -> int:
        """Bits of the arms that the request allows, up to a long side."""
        index = self._models.index
        return index.narrowed(index.mask(header.width, header.height), ask.variant, ask.long_side, most)

    def _behind(self, demands: Sequence[Demand], free_at: float) -> float:
        """When the last of them would be done behind everybody, harming nobody: a budget that long can be kept."""
        present, finish = list(self._demands.values()), -math.inf
        for demand in demands:
            finish = max(finish, admit(replace(demand, deadline=math.inf), present, free_at).finish)
            present.append(demand)
        return finish

    def _refuse(self, ask: Ask, finish: float, free_at: float, count: int) -> None:
        """Raise what is told where pictures cannot be on time; pass where they are wanted late, within limits."""
        predicted_ms = (finish - ask.received) * 1e3
        wait_s = self.backlog_s(free_at)
        if ask.on_infeasible == "reject":
            self.shed("infeasible", count)
            raise infeasible(ask, predicted_ms, wait_s)
        if self._late + count > most_late(self._settings.queue_limit):
            self.shed("overload", count)
            raise QueueFullError(
                f"Too many requests: within {ask.budget_ms:g} ms no detector can answer now, and {self._late} pictures "
                "wait already to be answered late. Try again shortly.",
                retry_after_s=wait_s,
                extra={"predicted_ms": round(predicted_ms, 1), "smallest_feasible_ms": math.ceil(predicted_ms)},
            )

    def backlog_s(self, free_at: float) -> float:
        """Seconds until the engine has answered everything inside on the fastest arms."""
        return max(free_at - time.monotonic(), 0.0) + sum(demand.seconds for demand in self._demands.values())

    def _options(self, header: ImageHeader, ask: Ask, count: int) -> list[Option]:
        """Every way to answer that the request allows, timed for `count` pictures like it one after another.

        Raises `BadParameterError` where it allows none.
        """
        models, loaded = self._models, self._models.loaded
        if ask.variant is not None and ask.variant not in loaded:
            raise BadParameterError("variant", f"There is no variant {ask.variant!r}; there are {', '.join(loaded)}.")
        for name in (ask.variant,) if ask.variant is not None else loaded:
            threshold = loaded[name].variant.manifest.thresholds.score
            if ask.min_score is not None and ask.min_score < threshold:
                raise BadParameterError(
                    "min_score",
                    f"min_score is {ask.min_score:g}, but {name} was built with {threshold:g}; ask for more.",
                )
        arms = models.arms()
        ways = self._ways(header.format, header.width, header.height, ask.variant, ask.long_side)
        if not ways:
            sides = sorted({arm.size.long_side for arm in arms})
            raise BadParameterError("long_side", f"No input size has the long side {ask.long_side}; there are {sides}.")
        return [
            Option(k, arms[k].size, arms[k].ap50, before_ms, arms[k].latency_ms[0] * count) for k, before_ms in ways
        ]

    def _ways_of(
        self, file_format: Format, width: int, height: int, variant: str | None, long_side: int | None
    ) -> tuple[tuple[int, float], ...]:
        """(arm, predicted milliseconds of decoding and fitting for it) of each tight arm of that variant and side."""
        keys, cost = self._models.index.keys, self._models.profile.decode
        return tuple(
            (k, profiling.decode_ms(cost, file_format, width, height, keys[k][1].long_side))
            for k in self._models.index.tight(width, height)
            if variant in (None, keys[k][0]) and long_side in (None, keys[k][1].long_side)
        )


def infeasible(ask: Ask, predicted_ms: float, wait_s: float) -> InfeasibleError:
    """The error of a picture that could be answered after `predicted_ms` at the soonest."""
    return InfeasibleError(
        budget_ms=ask.budget_ms, predicted_ms=predicted_ms, smallest_feasible_ms=predicted_ms, retry_after_s=wait_s
    )
