"""What is sent: pictures with bytes as they are on disk, and traces of arrivals that each carry one of them."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.load.client import Shot
from service.errors import AsfdError
from service.imaging.decode import Limits, inspect
from service.simulation.spec import parse_spec
from service.simulation.trace import Arrival, generate

DRAWN_SIZES = ((320, 240), (640, 480), (480, 640), (720, 720), (1280, 720), (1920, 1080))
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_LIMITS = Limits(64_000_000)


@dataclass(frozen=True, slots=True)
class Photo:
    """An encoded picture. width, height: upright, in pixels, as the service reads them."""

    name: str
    data: bytes = field(repr=False)
    content_type: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Trace:
    """arrivals: with the sizes of the photos that they carry; photos: which one, by its number. spec: the line that
    made it."""

    name: str
    spec: str
    arrivals: tuple[Arrival, ...]
    photos: tuple[int, ...]


def read_photos(data: Path, count: int, seed: int, split: str = "dev") -> tuple[Photo, ...]:
    """`count` photos of a split in WIDER Face's layout (or of a plain folder), drawn by `seed`, bytes as they are.

    Raises FileNotFoundError where there is no picture, ValueError where the service could not read one.
    """
    folders = [data / split / "images", data / f"WIDER_{split}" / "images", data]
    folder = next((one for one in folders if one.is_dir()), None)
    found = [] if folder is None else sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not found:
        raise FileNotFoundError(f"no pictures in {data}: name a folder with {split}/images, or one of pictures, --data")
    order = np.random.default_rng((seed, 5)).permutation(len(found))[:count]
    return tuple(_photo(str(found[k].relative_to(data)), found[k].read_bytes()) for k in order)


def drawn_photos() -> tuple[Photo, ...]:
    """Pictures for machines without photos: two of each of some sizes, JPEG, with a few ovals for faces."""
    rng = np.random.default_rng(0)
    photos = []
    for number in range(2 * len(DRAWN_SIZES)):
        width, height = DRAWN_SIZES[number % len(DRAWN_SIZES)]
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(picture)
        for x, y, part in rng.uniform(0.05, 0.3, (5, 3)) * (3, 2, 1):
            left, top, side = x * width, y * height, part * height
            draw.ellipse((left, top, left + 0.75 * side, top + side), fill=(214, 170, 140))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=88)
        photos.append(_photo(f"drawn-{number}.jpg", buffer.getvalue()))
    return tuple(photos)


def _photo(name: str, data: bytes) -> Photo:
    try:
        header = inspect(data, _LIMITS)
    except AsfdError as error:
        raise ValueError(f"{name} is no picture that the service reads: {error}") from None
    return Photo(name, data, f"image/{header.format.lower()}", header.width, header.height)


def fingerprint(photos: Sequence[Photo]) -> str:
    """Changes with the bytes of the pictures and their order."""
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(hashlib.sha256(photo.data).digest())
    return digest.hexdigest()[:16]


def kind_of(name: str) -> str:
    """The beginning of a trace's specification, by its short name: `poisson`, `diurnal`, or `gamma4` for a CV^2 of 4.

    Raises ValueError for any other.
    """
    match = re.fullmatch(r"gamma(\d+(?:\.\d+)?)", name)
    if match is not None:
        return f"gamma:cv2={match[1]},"
    if name not in ("poisson", "diurnal"):
        raise ValueError(f"there is no trace {name!r}; there are poisson, diurnal, and gamma with its CV^2, as gamma4")
    return f"{name}:"


def make_trace(
    name: str, rate: float, seconds: float, mix: str, late_ok: float, photos: Sequence[Photo], seed: int
) -> Trace:
    """Arrivals at `rate` a second. mix: shares of the tiers, as `realtime:1+standard:2`; late_ok: share of requests
    that want a late answer rather than none. Raises ValueError where a part cannot be used, or nothing arrives.
    """
    text = f"{kind_of(name)}rate={rate:.4g},seconds={seconds:g},mix={mix},late_ok={late_ok:g},seed={seed}"
    spec = parse_spec(text)
    assert spec.rate is not None
    arrivals = generate(spec, spec.rate, seed)
    if not arrivals:
        raise ValueError(f"{text} has no arrivals; give more --seconds, or a higher load")
    picks = np.random.default_rng((seed, 7)).integers(0, len(photos), len(arrivals)).tolist()
    sized = tuple(
        replace(arrival, width=photos[k].width, height=photos[k].height)
        for arrival, k in zip(arrivals, picks, strict=True)
    )
    return Trace(name, text, sized, tuple(picks))


def shots(trace: Trace, photos: Sequence[Photo], tiers_ms: Mapping[str, float]) -> list[Shot]:
    """The requests of a trace. tiers_ms: the service's; an arrival of another tier or budget names its milliseconds."""
    requests = []
    for arrival, k in zip(trace.arrivals, trace.photos, strict=True):
        named = tiers_ms.get(arrival.tier) == arrival.budget_ms
        budget = f"tier={arrival.tier}" if named else f"latency_ms={arrival.budget_ms:g}"
        target = f"/detect?{budget}&on_infeasible={'degrade' if arrival.late_ok else 'reject'}"
        photo = photos[k]
        requests.append(Shot(arrival.at_s, target, photo.data, photo.content_type, arrival.budget_ms, arrival.tier))
    return requests
