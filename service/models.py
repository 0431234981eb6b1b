"""The models of one service: loaded, verified, profiled, and predicted as they run."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service import profiling
from service.engines.base import Engine
from service.engines.ort import CPU_KIND
from service.engines.select import Selection, open_engines
from service.observer import Observer, SilentObserver
from service.repository.store import Variant, load_repository
from service.scheduling.arms import ArmIndex
from service.scheduling.prediction import Correction, Prediction
from service.scheduling.problem import Arm
from service.settings import Settings

_LOG = logging.getLogger(__name__)

_PROFILE_SECONDS = 15.0
_SAVE_EVERY_S = 60.0
# Until predictions are looked at again: what is seen of one arm tells something of the others, and what was seen fades.
_REFRESH_S = 0.25
# So stale may they get where nobody calls `refresh`.
_STALE_S = 2.0
# Arms whose prediction moved by less stay the same objects, from which policies derive tables only once.
_SAME = 0.02


@dataclass(frozen=True)
class Loaded:
    """One variant and its engine."""

    variant: Variant
    engine: Engine


class Models:
    """Every variant with its engine, and the arms that it offers. `arms` and `observe` belong to one thread."""

    def __init__(
        self, loaded: dict[str, Loaded], profile: profiling.Profile, correction: Path, clock: Callable[[], float]
    ) -> None:
        self.loaded, self.profile, self._path, self._clock = loaded, profile, correction, clock
        base = profiling.base_latencies(profile)
        keys = [(name, size) for name, one in loaded.items() for size in one.variant.manifest.input_sizes]
        self.index = ArmIndex(keys, [(name, s) for name, s in keys if len(base[name, s.height, s.width]) > 1])
        self.prediction = Prediction(base)
        self._ap50 = [self.ap50(name, size.long_side) or 0.0 for name, size in keys]
        self._typical = {
            (t.variant, t.height, t.width): min(t.p50_ms / t.p99_ms, 1.0) for t in profile.timings if t.batch == 1
        }  # fmt: skip
        kept = _read_correction(correction)
        if kept is not None and kept.key == profile.key:
            self.prediction.resume(kept, clock())
        self._arms = tuple(self._arm(number, clock()) for number in range(len(self.index.keys)))
        self._ran: set[int] = set()  # arms whose runs are not in their predictions yet
        self._checked = self._saved = clock()

    def arms(self) -> tuple[Arm, ...]:
        """The arms in the order of `index`, as they were predicted at the last `refresh`."""
        if self._clock() - self._checked > _STALE_S:
            self.refresh()
        return self._arms

    def refresh(self) -> None:
        """Predict anew: the arms that have run since the last time, and all of them now and then.

        It costs as much as a decision, so it is to be called when nobody waits for one.
        """
        now = self._clock()
        if now - self._checked > _REFRESH_S:
            self._checked = now
            self._ran.update(range(len(self._arms)))
        fresh = {number: self._arm(number, now) for number in self._ran}
        self._ran.clear()
        if moved := {number for number, arm in fresh.items() if _moved(self._arms[number], arm)}:
            self._arms = tuple(fresh[n] if n in moved else arm for n, arm in enumerate(self._arms))

    def observe(self, number: int, batch: int, ms: float) -> float:
        """Take note of a run of an arm; returns what had been predicted for it, in ms."""
        variant, size = self.index.keys[number]
        self._ran.add(number)
        return self.prediction.observe(variant, size, batch, ms, self._clock())

    def typical(self, number: int) -> float:
        """Share of an arm's predicted p99 that a run of a single picture usually takes, by the profile."""
        variant, size = self.index.keys[number]
        return self._typical[variant, size.height, size.width]

    def ap50(self, variant: str, long_side: int) -> float | None:
        return self.loaded[variant].variant.manifest.ap50(variant, long_side)

    def _arm(self, number: int, now: float) -> Arm:
        variant, size = self.index.keys[number]
        latencies = self.prediction.latencies_ms(variant, size, now)
        return Arm(variant, size, self._ap50[number], latencies)

    def describe(self) -> list[dict[str, Any]]:
        """Every variant with its accuracy, memory and live latencies, as plain containers."""
        return [self._describe(name, one) for name, one in self.loaded.items()]

    def _describe(self, name: str, one: Loaded) -> dict[str, Any]:
        manifest, engine = one.variant.manifest, one.engine
        medians = {(t.height, t.width): t.p50_ms for t in self.profile.timings if (t.variant, t.batch) == (name, 1)}
        arms = {arm.size: arm for arm in self._arms if arm.variant == name}
        return {
            "variant": name,
            "member": manifest.member,
            "title": manifest.title,
            "family": manifest.family,
            "engine": engine.kind,
            "precision": one.variant.file.precision,
            "architecture": manifest.architecture.model_dump(exclude={"genotype"}),
            "thresholds": manifest.thresholds.model_dump(),
            "file_bytes": one.variant.file.size_bytes,
            "memory_bytes": engine.memory_bytes(),
            "accuracy": [row.model_dump() for row in manifest.accuracy if row.variant == name],
            "inputs": [
                {
                    "height": size.height,
                    "width": size.width,
                    "ap50": manifest.ap50(name, size.long_side),
                    "max_batch": arms[size].max_batch,
                    "p50_ms": round(medians[size.height, size.width], 2),
                    "p99_ms": round(arms[size].latency_ms[0], 2),
                    "runs_seen": self.prediction.runs(name, size),
                }
                for size in manifest.input_sizes
            ],
        }

    def correction_due(self) -> bytes | None:
        """What is to be kept for the next start, once a minute at most; None in between."""
        now = self._clock()
        if now - self._saved < _SAVE_EVERY_S:
            return None
        self._saved = now
        return self._correction()

    def _correction(self) -> bytes:
        return self.prediction.correction(self.profile.key).model_dump_json().encode()

    def save(self, content: bytes | None = None) -> None:
        """Keep what was learnt, atomically; what cannot be written is said in the log and costs nothing else."""
        profiling.write_bytes(self._path, content or self._correction())

    def close(self) -> None:
        self.save()
        for one in self.loaded.values():
            one.engine.close()


def load_models(
    settings: Settings,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> Models:
    """Load, verify, choose engines, profile, warm up; `say` is told what is being done. stop: ends a build of engines.

    The profile and what was learnt beside it are kept between starts, and refused where hardware, an engine or a
    model's hash differs. Raises `RepositoryError` or `EngineError` where the models are unusable.
    """
    say("loading models")
    told = observer or SilentObserver()
    chosen = open_engines(
        load_repository(settings.repository), settings, say,
        lambda step: told.engine_fallback(step.start, step.to, step.reason), stop,
    )  # fmt: skip
    loaded = {one.variant.name: Loaded(one.variant, one.engine) for one in chosen.opened}
    for one in chosen.opened:
        told.engine_chosen(one.variant.name, one.engine.kind)
    folder = settings.usable_cache_dir()
    key = _profile_key(chosen, settings)
    path = folder / f"profile-{key[:16]}.json"
    pairs = [(one.variant.name, size) for one in chosen.opened for size in one.variant.manifest.input_sizes]
    profile = profiling.read_profile(path, key, pairs)
    stored = profile is not None
    if profile is None:
        work = [(one.engine, one.variant.manifest.input_sizes) for one in chosen.opened]
        profile = profiling.measure(work, key, _PROFILE_SECONDS, say, settings.max_batch)
        profiling.write_profile(path, profile)
    for one in chosen.opened:
        if stored or one.engine.kind != CPU_KIND:
            say(f"warming up {one.variant.name}")
            _warm_up(one.engine, one.variant, profile)
    return Models(loaded, profile, folder / f"correction-{key[:16]}.json", clock)


def _profile_key(chosen: Selection, settings: Settings) -> str:
    parts = [profiling.hardware_name(settings.intra_op_threads, chosen.gpu), f"batches to {settings.max_batch}"]
    for one in chosen.opened:
        sizes = ",".join(map(str, one.variant.manifest.input_sizes))
        parts.append(":".join([one.variant.name, one.variant.file.sha256, sizes, *filter(None, [one.identity])]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _warm_up(engine: Engine, variant: Variant, profile: profiling.Profile) -> None:
    """One run on a CPU; on a GPU one of each size and batch that requests may meet, those between the measured ones
    included, since the first run costs many times what the others do."""
    most: dict[tuple[int, int], int] = {}
    for t in profile.timings:
        if t.variant == variant.name:
            most[t.height, t.width] = max(most.get((t.height, t.width), 1), t.batch)
    every = [(height, width, batch) for (height, width), last in most.items() for batch in range(1, last + 1)]
    for height, width, batch in every[:1] if engine.kind == CPU_KIND else every:
        engine.warm_up(height, width, batch)


def _moved(old: Arm, new: Arm) -> bool:
    return any(abs(b - a) > _SAME * a for a, b in zip(old.latency_ms, new.latency_ms, strict=True))


def _read_correction(path: Path) -> Correction | None:
    try:
        return Correction.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, ValueError):
        _LOG.warning("%s is damaged; what earlier runs taught is lost", path)
        return None
