"""When pictures arrive, and how long each may take: synthetic traces, and recorded ones from CSV files."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.simulation.profile import SimProfile, capacity
from service.simulation.spec import KINDS, MOST_ARRIVALS, MOST_BUDGET_MS, TraceSpec, is_spec, parse_spec, shown

_REQUIRED, _OPTIONAL = ("arrival_s", "budget_ms"), ("tier", "width", "height", "late_ok")
_DEFAULT_SIZE = (640, 480)
_MOST_AT_S = 1e11  # clocks since 1970 may count in seconds
_GRID = 100_000


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. at_s: seconds from the trace's start; budget_ms: from then to the answer; width, height: pixels."""

    at_s: float
    budget_ms: float
    tier: str = ""
    width: int = _DEFAULT_SIZE[0]
    height: int = _DEFAULT_SIZE[1]
    late_ok: bool = False

    @property
    def deadline(self) -> float:
        return self.at_s + self.budget_ms / 1e3


def load_trace(text: str, profile: SimProfile, seed: int = 0) -> tuple[Arrival, ...]:
    """The trace of a specification (`service.simulation.spec`) or of a CSV file. seed: where the former names none.

    Raises OSError or ValueError that says what is wrong with which part or line.
    """
    if not is_spec(text):
        return read_csv(Path(text))
    spec = parse_spec(text)
    rate = spec.rate
    if rate is None:
        assert spec.load is not None
        rate = spec.load * capacity(profile, spec.sizes, spec.reference)
    trace = generate(spec, rate, seed if spec.seed is None else spec.seed)
    if not trace:
        raise ValueError(f"{shown(text)} has no arrivals ({rate:g} pictures a second); raise the rate or the seconds")
    return trace


def tier_budgets(trace: Sequence[Arrival]) -> dict[str, float]:
    """Tier -> the least budget that its requests have, in milliseconds."""
    budgets: dict[str, float] = {}
    for arrival in trace:
        budgets[arrival.tier] = min(arrival.budget_ms, budgets.get(arrival.tier, math.inf))
    return budgets


def generate(spec: TraceSpec, rate: float, seed: int) -> tuple[Arrival, ...]:
    """Arrivals in order of time. rate: pictures a second on average, which takes the place of the specification's.

    Raises ValueError where there would be too many to hold.
    """
    if rate * spec.seconds > MOST_ARRIVALS:
        raise ValueError(
            f"{rate:g} pictures a second for {spec.seconds:g} s are more than {MOST_ARRIVALS} arrivals; take fewer"
        )
    # Streams of their own, so that the same seed gives the same times whatever the mix is.
    times_rng, kinds_rng = np.random.default_rng((seed, 0)), np.random.default_rng((seed, 1))
    if spec.kind == "diurnal":
        times = _diurnal_times(spec, rate, times_rng)
    else:
        times = _renewal_times(rate, spec.cv2 if spec.kind == "gamma" else 1.0, spec.seconds, times_rng)
    tiers = kinds_rng.choice(len(spec.tiers), len(times), p=[share for _, _, share in spec.tiers])
    sizes = kinds_rng.choice(len(spec.sizes), len(times), p=[share for _, _, share in spec.sizes])
    late_ok = kinds_rng.random(len(times)) < spec.late_ok
    arrivals = []
    for at, k, s, late in zip(times.tolist(), tiers.tolist(), sizes.tolist(), late_ok.tolist(), strict=True):
        (tier, budget, _), (width, height, _) = spec.tiers[k], spec.sizes[s]
        arrivals.append(Arrival(at, budget, tier, width, height, late))
    return tuple(arrivals)


def _renewal_times(rate: float, cv2: float, seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Sums of Gamma gaps of mean 1 / rate and variance cv2 / rate^2; cv2 = 1 is the Poisson process. [arrivals], s."""
    pieces: list[NDArray[np.float64]] = []
    end = 0.0
    while end <= seconds:
        gaps = rng.gamma(1 / cv2, cv2 / rate, math.ceil(rate * seconds) + 64)
        pieces.append(end + np.cumsum(gaps))
        end = float(pieces[-1][-1])
    times = np.concatenate(pieces)
    return times[times <= seconds]


def _diurnal_times(spec: TraceSpec, rate: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A Poisson process of rate proportional to 1 - swing cos(2 pi t / seconds), times `burst_factor` within bursts.

    Drawn through the integral of the rate, scaled so that its mean over the trace is `rate`. [arrivals], s.
    """
    edges = np.linspace(0.0, spec.seconds, _GRID + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    starts = rng.uniform(0.0, spec.seconds - spec.burst_seconds, spec.bursts)
    intensity = 1.0 - spec.swing * np.cos(2 * np.pi * middle / spec.seconds)
    within = np.zeros(_GRID, dtype=bool)
    for start in starts:
        within |= (middle >= start) & (middle < start + spec.burst_seconds)
    intensity[within] *= spec.burst_factor
    integral = np.concatenate([[0.0], np.cumsum(intensity)])
    count = int(rng.poisson(rate * spec.seconds))
    return np.interp(np.sort(rng.uniform(0.0, integral[-1], count)), integral, edges)


def read_csv(path: Path) -> tuple[Arrival, ...]:
    """Read `arrival_s,budget_ms[,tier,width,height,late_ok]`, with that heading, sorted here by arrival.

    Raises OSError, or ValueError that names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no trace {path}: give a CSV file, or a specification of {', '.join(KINDS)} such as "
            "poisson:rate=20,seconds=60"
        )
    arrivals = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            missing = [name for name in _REQUIRED if name not in names]
            unknown = [name for name in names if name not in (*_REQUIRED, *_OPTIONAL)]
            if missing or unknown or len(set(names)) != len(names):
                raise ValueError(
                    f"{path}, line 1: the heading must name {', '.join(_REQUIRED)} and may name {', '.join(_OPTIONAL)},"
                    f" each once; it reads {shown(','.join(names))}"
                )
            for row in reader:
                try:
                    arrivals.append(_arrival(row))
                except ValueError as error:
                    raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8; a trace is CSV with a heading") from None
    except csv.Error as error:
        raise ValueError(f"{path} is not CSV: {error}") from None
    if not arrivals:
        raise ValueError(f"{path} has no arrivals below its heading")
    return tuple(sorted(arrivals, key=lambda arrival: arrival.at_s))


def _arrival(row: Mapping[str | None, str | list[str] | None]) -> Arrival:
    if None in row or None in row.values():
        raise ValueError("it has more or fewer values than the heading")
    values = {str(name): str(value).strip() for name, value in row.items()}
    at, budget = _value(values, "arrival_s"), _value(values, "budget_ms")
    if not 0 < budget <= MOST_BUDGET_MS:
        given = shown(values["budget_ms"])
        raise ValueError(f"budget_ms must be above 0 and at most {MOST_BUDGET_MS:.0f}, not {given}")
    if at > _MOST_AT_S:
        raise ValueError(f"arrival_s must be at most {_MOST_AT_S:g}, not {shown(values['arrival_s'])}")
    sides = []
    for name, default in zip(("width", "height"), _DEFAULT_SIZE, strict=True):
        text = values.get(name, "")
        if text and not (text.isdecimal() and len(text) <= 7 and 1 <= int(text) <= 1_000_000):
            raise ValueError(f"{name} must be a number of pixels, not {shown(text)}")
        sides.append(int(text) if text else default)
    late_ok = values.get("late_ok", "").lower()
    if late_ok not in ("", "0", "1", "false", "true"):
        raise ValueError(f"late_ok must be 0 or 1, not {shown(values['late_ok'])}")
    return Arrival(at, budget, values.get("tier", ""), sides[0], sides[1], late_ok in ("1", "true"))


def _value(values: Mapping[str, str], name: str) -> float:
    try:
        number = float(values[name])
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be a number, 0 or more, not {shown(values[name])}")
    return number
