"""A synthetic trace in one line: `gamma:rate=20,cv2=4,seconds=60,mix=realtime:0.3+standard:0.7`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("poisson", "gamma", "diurnal")
DEFAULT_TIERS = (("realtime", 150.0), ("interactive", 400.0), ("standard", 1000.0), ("accurate", 3000.0))
MOST_ARRIVALS = 2_000_000
MOST_BUDGET_MS = 600_000.0
MOST_SEED = 2**63 - 1
_MOST_BURSTS = 1000
# Of the numbers that a specification holds: far beyond any use, and far from where floats overflow.
_RANGES = {
    "rate": (1e-6, 1e6),
    "load": (1e-6, 1e4),
    "seconds": (1e-3, 1e8),
    "cv2": (1e-6, 100.0),  # beyond it nearly all gaps are 0
    "burst_seconds": (1e-3, 1e8),
    "burst_factor": (1e-3, 1e4),
    "tiers": (1e-3, MOST_BUDGET_MS),
    "mix": (1e-6, 1e6),
    "sizes": (1e-6, 1e6),
}

_COMMON = ("rate", "load", "reference", "seconds", "tiers", "mix", "sizes", "late_ok", "seed")
_OWN = {"poisson": (), "gamma": ("cv2",), "diurnal": ("swing", "bursts", "burst_factor", "burst_seconds")}
_EXAMPLE = "poisson:rate=20,seconds=60"


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """kind: `poisson` (exponential gaps), `gamma` (gaps of squared coefficient of variation `cv2`) or `diurnal`: a
    Poisson process whose rate swings once as a day does, from a quiet start over a peak and back, with bursts.

    rate: pictures a second on average, bursts included; or load: that as a fraction of a profile's capacity, of the
    arms of `reference` where one is named. tiers: (name, budget in ms, share of arrivals, summing to 1); sizes:
    (width, height, share); late_ok: share of pictures whose late answer is wanted. swing: 0..1, the day's amplitude
    over its mean; bursts: how many, each `burst_seconds` long at `burst_factor` times the rate. seed: None leaves it
    to the caller.
    """

    kind: str
    rate: float | None
    load: float | None
    seconds: float
    tiers: tuple[tuple[str, float, float], ...]
    sizes: tuple[tuple[int, int, float], ...] = ((640, 480, 1.0),)
    reference: str = ""
    late_ok: float = 0.0
    seed: int | None = None
    cv2: float = 1.0
    swing: float = 0.8
    bursts: int = 4
    burst_factor: float = 3.0
    burst_seconds: float = 0.0


def shown(value: object) -> str:
    """`value` as an error quotes it: on one line, and not longer than a person reads."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def is_spec(text: str) -> bool:
    """Whether `text` begins as a specification does, and is not the name of a file."""
    return text.partition(":")[0] in KINDS


def parse_spec(text: str) -> TraceSpec:
    """Raises ValueError that quotes the part at fault and says what it takes."""
    kind, _, rest = text.partition(":")
    text = shown(text)
    if kind not in KINDS:
        raise ValueError(f"{text}: there is no trace of that kind; there are {', '.join(KINDS)}, as {_EXAMPLE}")
    options: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in (*_COMMON, *_OWN[kind]):
            raise ValueError(f"{text}: {kind} has no option {shown(name)}; it has {', '.join((*_COMMON, *_OWN[kind]))}")
        if not equals or not value:
            raise ValueError(f"{text}: {name!r} needs a value, as in {_EXAMPLE}")
        if name in options:
            raise ValueError(f"{text}: {name!r} is given twice")
        options[name] = value
    if ("rate" in options) == ("load" in options):
        raise ValueError(f"{text} needs either rate= (pictures a second) or load= (a fraction of the capacity)")
    if "seconds" not in options:
        raise ValueError(f"{text} needs seconds=, as in {_EXAMPLE}")
    if "reference" in options and "load" not in options:
        raise ValueError(f"{text}: reference= says whose capacity load= is a fraction of; give load= with it")
    numbers = {
        name: _number(text, name, options[name])
        for name in ("rate", "load", "seconds", "cv2", "burst_seconds", "burst_factor")
        if name in options
    }
    seconds = numbers["seconds"]
    return TraceSpec(
        kind=kind,
        rate=numbers.get("rate"),
        load=numbers.get("load"),
        seconds=seconds,
        tiers=_tiers(text, options),
        sizes=_sizes(text, options.get("sizes", "640x480")),
        reference=options.get("reference", ""),
        late_ok=_share(text, "late_ok", options.get("late_ok", "0")),
        seed=_whole(text, "seed", options["seed"], MOST_SEED) if "seed" in options else None,
        cv2=numbers.get("cv2", 1.0),
        swing=_share(text, "swing", options.get("swing", "0.8")),
        bursts=_whole(text, "bursts", options.get("bursts", "4"), _MOST_BURSTS),
        burst_factor=numbers.get("burst_factor", 3.0),
        burst_seconds=min(numbers.get("burst_seconds", seconds / 40), seconds),
    )


def _number(text: str, name: str, value: str) -> float:
    least, most = _RANGES[name]
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not least <= number <= most:  # false for NaN, too
        raise ValueError(f"{text}: {name} must be a number from {least:g} to {most:g}, not {shown(value)}")
    return number


def _share(text: str, name: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError(f"{text}: {name} must be between 0 and 1, not {shown(value)}")
    return share


def _whole(text: str, name: str, value: str, most: int) -> int:
    # Python refuses to read integers of thousands of digits, in words of its own.
    if not value.isdecimal() or len(value) > len(str(most)) or int(value) > most:
        raise ValueError(f"{text}: {name} must be a whole number from 0 to {most}, not {shown(value)}")
    return int(value)


def _weights(text: str, name: str, value: str, default: str | None = None) -> Iterator[tuple[str, float]]:
    """`a:1+b:2` -> (a, 1), (b, 2). default: the number of an entry that has none."""
    seen: set[str] = set()
    for part in value.split("+"):
        label, colon, number = (piece.strip() for piece in part.partition(":"))
        if not label or label in seen or (not colon and default is None):
            raise ValueError(f"{text}: {name} is written name:number+name:number, each name once, not {shown(value)}")
        seen.add(label)
        yield label, _number(text, name, number if colon else str(default))


def _tiers(text: str, options: dict[str, str]) -> tuple[tuple[str, float, float], ...]:
    budgets = dict(_weights(text, "tiers", options["tiers"])) if "tiers" in options else dict(DEFAULT_TIERS)
    mix = dict(_weights(text, "mix", options["mix"])) if "mix" in options else dict.fromkeys(budgets, 1.0)
    for name in mix:
        if name not in budgets:
            raise ValueError(f"{text}: mix has no tier {shown(name)}; there are {', '.join(budgets)}, or name tiers=")
    total = sum(mix.values())
    return tuple((name, budgets[name], weight / total) for name, weight in mix.items())


def _sizes(text: str, value: str) -> tuple[tuple[int, int, float], ...]:
    shares = []
    for label, weight in _weights(text, "sizes", value, default="1"):
        match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", label)
        if match is None or not int(match[1]) or not int(match[2]):
            raise ValueError(f"{text}: a size is WIDTHxHEIGHT in pixels, as 640x480, not {shown(label)}")
        shares.append((int(match[1]), int(match[2]), weight))
    total = sum(weight for _, _, weight in shares)
    return tuple((width, height, weight / total) for width, height, weight in shares)
