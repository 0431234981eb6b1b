"""The latencies that a simulation runs on: the JSON of `python -m export profile`, as arms and as distributions.

A run of a batch takes a lognormal time whose median is the measured p50 and whose 99 % quantile is the measured p99,
clipped to its 0.1 % and 99.9 % quantiles. Where both are equal, the time is constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from service.repository.manifest import InputSize
from service.scheduling.arms import ArmIndex, batch_curve
from service.scheduling.problem import Arm

_Z99 = NormalDist().inv_cdf(0.99)
_Z_MOST = NormalDist().inv_cdf(0.999)
MOST_BATCH = 1024
PROFILE_VERSION = 2
"""Of the files that `python -m export profile` writes, too."""

# From a nanosecond to an hour: beyond them quotients and lognormal times would overflow.
_Milliseconds = Annotated[float, Field(ge=1e-6, le=3.6e6)]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True)

    variant: str = Field(min_length=1)
    height: int = Field(ge=32, le=4096, multiple_of=32)
    width: int = Field(ge=32, le=4096, multiple_of=32)
    batch: int = Field(ge=1, le=MOST_BATCH)
    p50_ms: _Milliseconds
    p99_ms: _Milliseconds
    ap50: float | None = Field(default=None, ge=0, le=1)


class _File(BaseModel):
    version: int
    hardware: str = ""
    date: str = ""
    rows: tuple[_Row, ...] = Field(min_length=1)

    @field_validator("version")
    @classmethod
    def _known(cls, version: int) -> int:
        if version != PROFILE_VERSION:
            raise ValueError(f"this is version {version}, and version {PROFILE_VERSION} is needed; make the file again")
        return version


@dataclass(frozen=True)
class SimProfile:
    """arms: with p99 to predict from; p50_ms[k][b - 1]: median of a batch of b on arm k. One clock, no engine."""

    arms: tuple[Arm, ...]
    p50_ms: tuple[tuple[float, ...], ...]
    hardware: str = ""
    date: str = ""

    @cached_property
    def _index(self) -> ArmIndex:
        keys = [(arm.variant, arm.size) for arm in self.arms]
        return ArmIndex(keys, [(arm.variant, arm.size) for arm in self.arms if arm.max_batch > 1])

    def arms_for(self, width: int, height: int) -> int:
        """Bits of the arms that may answer a picture, by the service's own rule; 0 where no size holds it."""
        return self._index.mask(width, height)

    def seconds(self, arm: int, batch: int, z: float) -> float:
        """Time of a run at the standard normal quantile `z`, clipped: 0 gives the median."""
        p50, p99 = self.p50_ms[arm][batch - 1], self.arms[arm].latency_ms[batch - 1]
        sigma = math.log(p99 / p50) / _Z99 if p99 > p50 else 0.0
        return p50 * math.exp(sigma * min(max(z, -_Z_MOST), _Z_MOST)) / 1e3


def capacity(profile: SimProfile, sizes: Sequence[tuple[int, int, float]], reference: str = "") -> float:
    """Pictures a second that the engine answers when it does nothing else: the rate that `load=1` stands for.

    It is the inverse of the mean, over the (width, height, weight) of `sizes`, of the least p50 / batch among the arms
    that may answer such a picture: the fastest arm at its best batch. reference: a variant, or variant@long_side, that
    the arms are limited to, so that a load can be stated against a detector of one's choice.
    Raises ValueError where no arm is left.
    """
    variant, _, side = reference.partition("@")
    allowed = [
        not reference or (arm.variant == variant and (not side or str(arm.size.long_side) == side))
        for arm in profile.arms
    ]
    seconds = 0.0
    for width, height, weight in sizes:
        mask = profile.arms_for(width, height)
        least = min(
            (ms / 1e3 / (b + 1) for k, p50 in enumerate(profile.p50_ms) if allowed[k] and mask >> k & 1
             for b, ms in enumerate(p50)),
            default=None,
        )  # fmt: skip
        if least is None:
            if not reference:
                raise ValueError(f"no input size of the profile holds a picture of {width}x{height}")
            names = ", ".join(sorted({f"{arm.variant}@{arm.size.long_side}" for arm in profile.arms}))
            raise ValueError(f"reference={reference}: no arm of that name for {width}x{height}; there are {names}")
        seconds += weight * least
    return sum(weight for _, _, weight in sizes) / seconds


def read_profile(path: Path, max_batch: int | None = None) -> SimProfile:
    """Read the JSON of `python -m export profile`.

    max_batch: largest batch of every arm; None takes the largest that was measured of any. Raises OSError, or
    ValueError that names the row at fault and what to do.
    """
    if max_batch is not None and not 1 <= max_batch <= MOST_BATCH:
        raise ValueError(f"the largest batch must be 1 to {MOST_BATCH}, not {max_batch}")
    if not path.is_file():
        raise FileNotFoundError(f"no profile {path}; make it: python -m export profile --batches 1,2,4,8 --out {path}")
    try:
        content = _File.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        message = str(first["msg"]).removeprefix("Value error, ")
        raise ValueError(f"{path} is not a profile of `python -m export profile`: {where}: {message}") from None
    groups: dict[tuple[str, int, int], dict[int, _Row]] = {}
    for number, row in enumerate(content.rows):
        what = f"row {number} ({row.variant} at {row.height}x{row.width}, batch {row.batch})"
        if row.ap50 is None:
            raise ValueError(
                f"{path}: {what} has no ap50, and without the accuracy of every arm policies cannot be judged; measure "
                "it with `python -m export accuracy`, then make the profile again with `python -m export profile`"
            )
        group = groups.setdefault((row.variant, row.height, row.width), {})
        if row.batch in group:
            raise ValueError(f"{path}: {what} is there twice; remove one, or make the profile again")
        if any(other.ap50 != row.ap50 for other in group.values()):
            raise ValueError(f"{path}: {what} has another ap50 than its other batches; make the profile again")
        group[row.batch] = row
    most = max_batch or max(row.batch for row in content.rows)
    arms, medians = [], []
    for (variant, height, width), group in groups.items():
        p50 = batch_curve({b: row.p50_ms for b, row in group.items()}, most)
        p99 = batch_curve({b: max(row.p99_ms, row.p50_ms) for b, row in group.items()}, most)
        ap50 = next(iter(group.values())).ap50
        assert ap50 is not None
        # Two lines through different points may cross: the prediction stays above the median.
        upper = tuple(max(a, b) for a, b in zip(p50, p99, strict=True))
        arms.append(Arm(variant, InputSize(height=height, width=width), ap50, upper))
        medians.append(p50)
    return SimProfile(tuple(arms), tuple(medians), content.hardware, content.date)
