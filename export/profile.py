"""Latency of each variant, input size and batch size on this machine, and of other detectors in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from service.engines.ort import OnnxEngine, open_cpu
from service.profiling import hardware_name, percentile_99
from service.repository.manifest import InputSize
from service.repository.store import Repository, for_cpu
from service.simulation.profile import PROFILE_VERSION

if TYPE_CHECKING:
    from training.evaluation.detections import Source

_WARM_UP = 2
# Cascades on a large photo take seconds; so many of them say enough.
_FEWEST_RUNS, _PEER_SECONDS = 5, 10.0

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """Milliseconds of one run of the whole batch. ap50: of the variant at this long side, None where not measured;
    `python -m service simulate` needs it."""

    variant: str
    height: int
    width: int
    batch: int
    p50_ms: float
    p99_ms: float
    runs: int
    ap50: float | None = None


@dataclass(frozen=True)
class PeerRow:
    """Milliseconds of one photo of height x width, from decoded pixels to boxes. long_side: of its input."""

    detector: str
    long_side: int
    height: int
    width: int
    p50_ms: float
    p99_ms: float
    runs: int


def profile_repository(
    repository: Repository, batches: tuple[int, ...], runs: int, threads: int, photo: Pixels | None = None
) -> dict[str, Any]:
    """Time every combination, each after two runs of warm-up. JSON-ready; hardware and date named.

    photo: uint8 [h, w, 3], brought to each input size; noise where there is none. Variants that compute in float16 are
    left out, and named, since this is a CPU.
    """
    repository, left_out = for_cpu(repository)
    rows = []
    work = [(v, s, b) for v in repository.variants for s in v.manifest.input_sizes for b in batches]
    engine: OnnxEngine | None = None
    for variant, size, batch in tqdm(work, desc="profiling", unit="case"):
        if engine is None or engine.variant != variant.name:
            engine = open_cpu(variant.name, variant.path, threads)
        pictures = _batch(photo, batch, size)
        samples = _timed(lambda engine=engine, pictures=pictures: engine.run(pictures), runs)  # type: ignore[misc]
        p50, p99 = _summary(samples)
        ap50 = variant.manifest.ap50(variant.name, size.long_side)
        rows.append(Row(variant.name, size.height, size.width, batch, p50, p99, runs, ap50))
    return {
        "version": PROFILE_VERSION,
        "hardware": hardware_name(threads),
        "date": time.strftime("%Y-%m-%d"),
        "left_out": list(left_out),
        "rows": [asdict(row) for row in rows],
    }


def profile_peers(
    peers: Callable[[int], Sequence[tuple[str, Callable[[], Source]]]],
    sizes: Sequence[InputSize],
    runs: int,
    photo: Pixels,
    say: Callable[[str], None],
) -> list[PeerRow]:
    """Time other detectors on `photo` brought to each of `sizes`, one of a long side, each after two runs of warm-up.

    peers: (name, how to open it) of each at a long side. What has one input size of its own comes once, on a photo of
    its long side where there is one. A slow one gets fewer runs, five at least. One whose package is missing, or whose
    file its adapter cannot run, is left out, and `say` is told.
    """
    rows: list[PeerRow] = []
    seen: set[tuple[str, int]] = set()
    missing: set[str] = set()
    work = [(size, name, build) for size in sizes for name, build in peers(size.long_side)]
    for size, name, build in tqdm(work, desc="profiling others", unit="case"):
        if name in missing:
            continue
        try:
            source = build()
            fixed = source.long_side != size.long_side
            waits = fixed and any(source.long_side == other.long_side for other in sizes)
            if waits or (name, source.long_side) in seen:
                continue
            seen.add((name, source.long_side))
            picture = resized(photo, size)
            samples = _timed(lambda source=source, picture=picture: source(picture), runs, _PEER_SECONDS)  # type: ignore[misc]
        except Exception as error:  # of other people's code; what was measured of the others must not be lost
            missing.add(name)
            say(f"{name} is left out: {error}")
            continue
        p50, p99 = _summary(samples)
        rows.append(PeerRow(name, source.long_side, size.height, size.width, p50, p99, len(samples)))
    return rows


def compared_sizes(sizes: Sequence[InputSize]) -> list[InputSize]:
    """The lowest size of each long side that is no higher than wide (4:3 for the family): one photo for everybody."""
    best: dict[int, InputSize] = {}
    for size in sizes:
        known = best.get(size.width)
        if size.height <= size.width and (known is None or size.height < known.height):
            best[size.width] = size
    return [best[side] for side in sorted(best)]


def resized(photo: Pixels, size: InputSize) -> Pixels:
    """The photo at exactly that size, uint8 [height, width, 3]; its proportions may change."""
    return np.asarray(Image.fromarray(photo).resize((size.width, size.height), Image.Resampling.BILINEAR))


def timing_photo(path: Path | None) -> Pixels:
    """The photo that everybody is timed on: a file, or NASA's astronaut (public domain, in scikit-image) twice, side by
    side, at 4:3. Raises OSError, and ValueError where there is neither."""
    if path is not None:
        from training.data.cache import load_picture

        return load_picture(path)
    try:
        from skimage.data import astronaut
    except ImportError:
        raise ValueError("name a photo to time the detectors on: --photo FILE") from None
    pixels: Pixels = np.asarray(astronaut(), dtype=np.uint8)  # type: ignore[no-untyped-call]
    return np.ascontiguousarray(np.tile(pixels, (1, 2, 1))[:, : 512 * 4 // 3])


def _batch(photo: Pixels | None, batch: int, size: InputSize) -> Pixels:
    if photo is None:
        return np.random.default_rng(0).integers(0, 256, (batch, size.height, size.width, 3), dtype=np.uint8)
    return np.repeat(resized(photo, size)[None], batch, axis=0)


def _timed(run: Callable[[], object], runs: int, seconds: float = float("inf")) -> list[float]:
    """Milliseconds of each of `runs`, after the warm-up. No further one begins after `seconds`, once five are made."""
    for _ in range(_WARM_UP):
        run()
    samples: list[float] = []
    until = time.perf_counter() + seconds
    while len(samples) < runs and (len(samples) < _FEWEST_RUNS or time.perf_counter() < until):
        began = time.perf_counter()
        run()
        samples.append((time.perf_counter() - began) * 1e3)
    return samples


def _summary(samples: list[float]) -> tuple[float, float]:
    return round(float(np.median(samples)), 2), round(percentile_99(samples), 2)
