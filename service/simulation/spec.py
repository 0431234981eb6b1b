"""A synthetic trace in one line: `gamma:rate=20,cv2=4,seconds=60,mix=realtime:0.3+standard:0.7`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("poisson", "gamma", "diurnal")
DEFAULT_TIERS = (("realtime", 150.0), ("interactive", 400.0), ("standard", 1000.0), ("accurate", 3000.0))
MOST_ARRIVALS = 2_000_000
_MOST_CV2 = 100.0

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


def is_spec(text: str) -> bool:
    """Whether `text` begins as a specification does, and is not the name of a file."""
    return text.partition(":")[0] in KINDS


def parse_spec(text: str) -> TraceSpec:
    """Raises ValueError that quotes the part at fault and says what it takes."""
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise ValueError(f"{text!r}: there is no kind of trace {kind!r}; there are {', '.join(KINDS)}, as {_EXAMPLE}")
    options: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in (*_COMMON, *_OWN[kind]):
            raise ValueError(f"{text!r}: {kind} has no option {name!r}; it has {', '.join((*_COMMON, *_OWN[kind]))}")
        if not equals or not value:
            raise ValueError(f"{text!r}: {name!r} needs a value, as in {_EXAMPLE}")
        if name in options:
            raise ValueError(f"{text!r}: {name!r} is given twice")
        options[name] = value
    if ("rate" in options) == ("load" in options):
        raise ValueError(f"{text!r} needs either rate= (pictures a second) or load= (a fraction of the capacity)")
    if "seconds" not in options:
        raise ValueError(f"{text!r} needs seconds=, as in {_EXAMPLE}")
    if "reference" in options and "load" not in options:
        raise ValueError(f"{text!r}: reference= says whose capacity load= is a fraction of; give load= with it")
    numbers = {
        name: _number(text, name, options[name], least)
        for name, least in (("rate", 0.0), ("load", 0.0), ("seconds", 0.0), ("cv2", 0.0), ("burst_seconds", 0.0))
        if name in options
    }
    seconds = numbers["seconds"]
    if numbers.get("cv2", 1.0) > _MOST_CV2:
        raise ValueError(f"{text!r}: cv2 must be at most {_MOST_CV2:g}: beyond it nearly all gaps are 0")
    return TraceSpec(
        kind=kind,
        rate=numbers.get("rate"),
        load=numbers.get("load"),
        seconds=seconds,
        tiers=_tiers(text, options),
        sizes=_sizes(text, options.get("sizes", "640x480")),
        reference=options.get("reference", ""),
        late_ok=_share(text, "late_ok", options.get("late_ok", "0")),
        seed=_whole(text, "seed", options["seed"]) if "seed" in options else None,
        cv2=numbers.get("cv2", 1.0),
        swing=_share(text, "swing", options.get("swing", "0.8")),
        bursts=_whole(text, "bursts", options.get("bursts", "4")),
        burst_factor=_number(text, "burst_factor", options.get("burst_factor", "3"), 0.0),
        burst_seconds=min(numbers.get("burst_seconds", seconds / 40), seconds),
    )


def _number(text: str, name: str, value: str, above: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > above):
        raise ValueError(f"{text!r}: {name} must be a number above {above:g}, not {value!r}")
    return number


def _share(text: str, name: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError(f"{text!r}: {name} must be between 0 and 1, not {value!r}")
    return share


def _whole(text: str, name: str, value: str) -> int:
    if not value.isdecimal():
        raise ValueError(f"{text!r}: {name} must be a whole number, 0 or more, not {value!r}")
    return int(value)


def _weights(text: str, name: str, value: str, default: str | None = None) -> Iterator[tuple[str, float]]:
    """`a:1+b:2` -> (a, 1), (b, 2). default: the number of an entry that has none."""
    seen: set[str] = set()
    for part in value.split("+"):
        label, colon, number = (piece.strip() for piece in part.partition(":"))
        if not label or label in seen or (not colon and default is None):
            raise ValueError(f"{text!r}: {name} is written name:number+name:number, each name once, not {value!r}")
        seen.add(label)
        yield label, _number(text, name, number if colon else str(default), 0.0)


def _tiers(text: str, options: dict[str, str]) -> tuple[tuple[str, float, float], ...]:
    budgets = dict(_weights(text, "tiers", options["tiers"])) if "tiers" in options else dict(DEFAULT_TIERS)
    mix = dict(_weights(text, "mix", options["mix"])) if "mix" in options else dict.fromkeys(budgets, 1.0)
    for name in mix:
        if name not in budgets:
            raise ValueError(f"{text!r}: mix has no tier {name!r}; there are {', '.join(budgets)}, or name tiers=")
    total = sum(mix.values())
    return tuple((name, budgets[name], weight / total) for name, weight in mix.items())


def _sizes(text: str, value: str) -> tuple[tuple[int, int, float], ...]:
    shares = []
    for label, weight in _weights(text, "sizes", value, default="1"):
        match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", label)
        if match is None or not int(match[1]) or not int(match[2]):
            raise ValueError(f"{text!r}: a size is WIDTHxHEIGHT in pixels, as 640x480, not {label!r}")
        shares.append((int(match[1]), int(match[2]), weight))
    total = sum(weight for _, _, weight in shares)
    return tuple((width, height, weight / total) for width, height, weight in shares)
