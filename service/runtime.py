"""The service's core without HTTP: repository, profile, selection, decoding, the engine queue."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service import profiling
from service.engines.base import Detections, Engine, EngineError
from service.engines.ort import OnnxCpuEngine
from service.errors import (
    BadParameterError,
    DeadlinePassedError,
    EngineFailureError,
    InfeasibleError,
    NotReadyError,
    QueueFullError,
)
from service.imaging.decode import Decoded, ImageHeader, decode
from service.letterbox import Fitted, fitting_size, letterbox, sizes_by_long_side, to_original
from service.observer import Observer, SilentObserver
from service.repository.manifest import InputSize
from service.repository.store import Variant, load_repository
from service.scheduling.policy import Choice, Option, Policy, most_accurate
from service.scheduling.queue import EngineQueue
from service.settings import Settings

_LOG = logging.getLogger(__name__)

_PROFILE_SECONDS = 15.0
# A request that accepts being late still gets an answer or a 504 within this time after its deadline.
_LATE_LIMIT_S = 10.0


@dataclass(frozen=True)
class Ask:
    """What a client wants. received: time.monotonic() at the request's first byte; min_face: pixels of the original."""

    budget_ms: float
    tier: str | None
    received: float
    on_infeasible: Literal["degrade", "reject"] = "degrade"
    variant: str | None = None
    long_side: int | None = None
    min_score: float | None = None
    default_min_score: float = 0.0
    max_faces: int | None = None
    min_face: float = 0.0

    @property
    def deadline(self) -> float:
        return self.received + self.budget_ms / 1e3

    def left_ms(self) -> float:
        return (self.deadline - time.monotonic()) * 1e3


@dataclass(frozen=True)
class Answer:
    """boxes: float32 [K, 4] x1 y1 x2 y2 in pixels of the upright original; scores: float32 [K], best first.

    pixels: the decoded picture, maybe smaller than the original. degraded: nothing was predicted to be on time.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    width: int
    height: int
    variant: str
    member: str
    engine: str
    input_height: int
    input_width: int
    ap50: float | None
    budget_ms: float
    decode_ms: float
    queue_ms: float
    infer_ms: float
    total_ms: float
    predicted_ms: float
    deadline_met: bool
    pixels: NDArray[np.uint8] | None
    degraded: bool


@dataclass(frozen=True)
class _Loaded:
    variant: Variant
    engine: Engine
    sizes: dict[int, tuple[InputSize, ...]]


@dataclass(frozen=True)
class _Run:
    """One pass through the engine: the choice made at dispatch and what came of it."""

    choice: Choice
    found: Detections
    fitted: Fitted
    started: float
    infer_ms: float


class Runtime:
    """Detects faces within budgets. `start` first; all methods belong to one event loop."""

    def __init__(self, settings: Settings, observer: Observer | None = None, policy: Policy = most_accurate) -> None:
        self._settings, self._policy = settings, policy
        self._observer: Observer = observer or SilentObserver()
        self._status = "not started"
        self._loaded: dict[str, _Loaded] = {}
        self._latency: profiling.LatencyModel | None = None
        self._queue: EngineQueue[_Run] | None = None
        self._decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._in_flight = 0
        self._draining = False

    @property
    def ready(self) -> bool:
        return self._queue is not None and not self._draining

    @property
    def status(self) -> str:
        """A word or a sentence for people: what the service is doing."""
        return "draining" if self._draining else self._status

    @property
    def queue_length(self) -> int:
        return len(self._queue) if self._queue else 0

    @property
    def profile(self) -> profiling.Profile | None:
        return self._latency.profile if self._latency else None

    @property
    def variants(self) -> list[dict[str, Any]]:
        """Every variant with its accuracy, memory and live latencies, as plain containers."""
        return [self._describe(loaded) for loaded in self._loaded.values()]

    async def start(self) -> None:
        """Load, verify, profile, warm up. Raises `RepositoryError` or `EngineError` where the models are unusable."""
        self._latency = await asyncio.to_thread(self._load)
        self._queue = EngineQueue()
        self._status = "ready"

    def _load(self) -> profiling.LatencyModel:
        settings = self._settings
        self._status = "loading models"
        repository = load_repository(settings.repository)
        for variant in repository.variants:
            engine = OnnxCpuEngine(variant.name, variant.path, settings.intra_op_threads)
            self._loaded[variant.name] = _Loaded(variant, engine, sizes_by_long_side(variant.manifest.input_sizes))
        hardware = profiling.hardware_name(settings.intra_op_threads)
        hashes = [f"{v.name}:{v.file.sha256}:{','.join(map(str, v.manifest.input_sizes))}" for v in repository.variants]
        key = hashlib.sha256("\n".join([hardware, *hashes]).encode()).hexdigest()
        path = settings.usable_cache_dir() / f"profile-{key[:16]}.json"
        pairs = [(v.name, size) for v in repository.variants for size in v.manifest.input_sizes]
        profile = profiling.read_profile(path, key, pairs)
        if profile is None:
            work = [(item.engine, item.variant.manifest.input_sizes) for item in self._loaded.values()]
            profile = profiling.measure(work, key, _PROFILE_SECONDS, self._say)
            profiling.write_profile(path, profile)
        else:
            for item in self._loaded.values():
                size = item.variant.manifest.input_sizes[0]
                self._say(f"warming up {item.variant.name}")
                item.engine.warm_up(size.height, size.width)
        return profiling.LatencyModel(profile)

    def _say(self, status: str) -> None:
        self._status = status
        _LOG.info("%s", status)

    async def detect(self, data: bytes, header: ImageHeader, ask: Ask) -> Answer:
        """Answer one request. Raises the errors of `service.errors`."""
        queue = self._queue
        if queue is None or self._draining:
            raise NotReadyError(f"The service is not ready: {self.status}. Try again shortly.")
        options = self._options(header, ask)
        if self._in_flight >= self._settings.queue_limit:
            self._observer.shed("queue_full")
            raise QueueFullError(
                f"{self._in_flight} requests are waiting already, which is the limit. Try again shortly.",
                retry_after_s=queue.wait_s(math.inf),
            )
        self._in_flight += 1
        try:
            return await self._answer(queue, data, header, ask, options)
        finally:
            self._in_flight -= 1

    async def _answer(
        self, queue: EngineQueue[_Run], data: bytes, header: ImageHeader, ask: Ask, options: list[Option]
    ) -> Answer:
        wait_ms = queue.wait_s(ask.deadline) * 1e3
        first = self._policy(options, ask.left_ms(), wait_ms)
        if not first.feasible and ask.on_infeasible == "reject":
            self._observer.shed("infeasible")
            spent = ask.budget_ms - ask.left_ms()
            raise InfeasibleError(
                budget_ms=ask.budget_ms,
                predicted_ms=spent + first.predicted_ms,
                smallest_feasible_ms=spent + first.predicted_ms,  # the fastest now, its wait included
                retry_after_s=wait_ms / 1e3,
            )
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        expires = ask.deadline + (_LATE_LIMIT_S if ask.on_infeasible == "degrade" else 0.0)
        try:
            async with asyncio.timeout(max(expires - began, 0.0)):
                decoded, fitted = await loop.run_in_executor(self._decoders, _prepare, data, header, first.option.size)
        except TimeoutError:
            self._observer.shed("expired")
            raise DeadlinePassedError(
                "The budget ran out before the picture was decoded. Ask for a longer one, or send a smaller picture."
            ) from None
        except asyncio.CancelledError:
            # `close` cancels what still waits for a decoder; that is not the client going away.
            task = asyncio.current_task()
            if self._draining and task is not None and not task.cancelling():
                raise NotReadyError("The service is stopping. Send the request again shortly.") from None
            raise
        decode_ms = (time.monotonic() - began) * 1e3
        self._observer.stage("decode", decode_ms / 1e3)

        # What was decoded for one size serves every smaller one, should time have run short meanwhile.
        ready = [
            Option(o.variant, o.size, o.ap50, 0.0, self._infer_ms(o.variant, o.size))
            for o in options
            if o.size.long_side <= first.option.size.long_side
        ]
        queued = time.monotonic()
        try:
            run = await queue.run(
                lambda: self._run(ready, decoded, fitted, first.option.size, ask),
                deadline=ask.deadline,
                expires=expires,
                expected_s=first.option.infer_ms / 1e3,
            )
        except DeadlinePassedError:
            self._observer.shed("expired")
            raise
        return self._finish(ask, decoded, run, first.predicted_ms, decode_ms, (run.started - queued) * 1e3)

    def _run(self, options: list[Option], decoded: Decoded, fitted: Fitted, fitted_for: InputSize, ask: Ask) -> _Run:
        """On the engine's thread: choose again by what is left, then infer."""
        started = time.monotonic()
        choice = self._policy(options, ask.left_ms(), 0.0)
        size = choice.option.size
        if size != fitted_for:
            fitted = letterbox(decoded.pixels, size, decoded.original_width, decoded.original_height)
        began = time.monotonic()
        try:
            found = self._loaded[choice.option.variant].engine.run(fitted.canvas[None])[0]
        except EngineError as error:
            _LOG.error("%s", error)
            raise EngineFailureError(
                "The detector failed on this picture; the cause is in the service's log."
            ) from None
        return _Run(choice, found, fitted, started, (time.monotonic() - began) * 1e3)

    def _finish(
        self, ask: Ask, decoded: Decoded, run: _Run, predicted_ms: float, decode_ms: float, queue_ms: float
    ) -> Answer:
        option = run.choice.option
        loaded = self._loaded[option.variant]
        assert self._latency is not None
        self._latency.observe(option.variant, option.size, run.infer_ms)
        width, height = decoded.original_width, decoded.original_height
        boxes = to_original(run.found.boxes, run.fitted, width, height)
        keep = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=math.inf) >= ask.min_face
        keep &= run.found.scores >= (ask.default_min_score if ask.min_score is None else ask.min_score)
        boxes, scores = boxes[keep][: ask.max_faces], run.found.scores[keep][: ask.max_faces]
        total_ms = ask.budget_ms - ask.left_ms()
        observer = self._observer
        observer.stage("infer", run.infer_ms / 1e3)
        observer.queue_wait(queue_ms / 1e3)
        observer.dispatch("pinned" if ask.variant else "on_time" if run.choice.feasible else "degraded", 1)
        observer.predicted_vs_actual(option.infer_ms / max(run.infer_ms, 1e-3), option.variant)
        observer.faces(len(scores))
        return Answer(
            boxes=boxes,
            scores=scores,
            width=width,
            height=height,
            variant=option.variant,
            member=loaded.variant.manifest.member,
            engine=loaded.engine.kind,
            input_height=option.size.height,
            input_width=option.size.width,
            ap50=loaded.variant.manifest.ap50(option.variant, option.size.long_side),
            budget_ms=ask.budget_ms,
            decode_ms=decode_ms,
            queue_ms=queue_ms,
            infer_ms=run.infer_ms,
            total_ms=total_ms,
            predicted_ms=predicted_ms,
            deadline_met=total_ms <= ask.budget_ms,
            pixels=decoded.pixels,
            degraded=not run.choice.feasible,
        )

    def _options(self, header: ImageHeader, ask: Ask) -> list[Option]:
        """Every way to answer that the request allows. Raises `BadParameterError` where it allows none."""
        if ask.variant is not None and ask.variant not in self._loaded:
            raise BadParameterError("variant", f"There is no variant {ask.variant!r}; there are {self._names()}.")
        assert self._latency is not None
        options = []
        for name, loaded in self._loaded.items():
            if ask.variant is not None and name != ask.variant:
                continue
            threshold = loaded.variant.manifest.thresholds.score
            if ask.min_score is not None and ask.min_score < threshold:
                raise BadParameterError(
                    "min_score",
                    f"min_score is {ask.min_score:g}, but {name} was built with {threshold:g}; ask for more.",
                )
            for long_side, sizes in loaded.sizes.items():
                if ask.long_side is not None and long_side != ask.long_side:
                    continue
                size = fitting_size(header.width, header.height, sizes)
                if size is not None:
                    ap50 = loaded.variant.manifest.ap50(name, long_side) or 0.0
                    before = self._latency.before_ms(header, long_side)
                    options.append(Option(name, size, ap50, before, self._infer_ms(name, size)))
        if not options:
            sides = sorted({side for loaded in self._loaded.values() for side in loaded.sizes})
            raise BadParameterError("long_side", f"No input size has the long side {ask.long_side}; there are {sides}.")
        return options

    def _infer_ms(self, variant: str, size: InputSize) -> float:
        assert self._latency is not None
        return self._latency.p99_ms(variant, size)

    def _names(self) -> str:
        return ", ".join(self._loaded)

    def _describe(self, loaded: _Loaded) -> dict[str, Any]:
        manifest, latency, name = loaded.variant.manifest, self._latency, loaded.variant.name
        return {
            "variant": name,
            "member": manifest.member,
            "title": manifest.title,
            "engine": loaded.engine.kind,
            "precision": loaded.variant.file.precision,
            "architecture": manifest.architecture.model_dump(exclude={"genotype"}),
            "thresholds": manifest.thresholds.model_dump(),
            "file_bytes": loaded.variant.file.size_bytes,
            "memory_bytes": loaded.engine.memory_bytes(),
            "accuracy": [row.model_dump() for row in manifest.accuracy if row.variant == name],
            "inputs": [
                {
                    "height": size.height,
                    "width": size.width,
                    "ap50": manifest.ap50(name, size.long_side),
                    "p50_ms": round(latency.p50_ms(name, size), 2),
                    "p99_ms": round(latency.p99_ms(name, size), 2),
                    "runs_seen": latency.runs(name, size),
                }
                for size in manifest.input_sizes
                if latency is not None
            ],
        }

    async def drain(self, seconds: float) -> None:
        """Take nothing new; wait at most `seconds` for what is under way."""
        self._draining = True
        until = time.monotonic() + seconds
        while self._in_flight and time.monotonic() < until:
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Stop the engine's and the decoders' threads."""
        self._draining = True
        if self._queue is not None:
            await self._queue.close()
            self._queue = None
        await asyncio.to_thread(self._decoders.shutdown, wait=True, cancel_futures=True)
        for loaded in self._loaded.values():
            loaded.engine.close()


def _prepare(data: bytes, header: ImageHeader, size: InputSize) -> tuple[Decoded, Fitted]:
    decoded = decode(data, header, size.long_side)
    return decoded, letterbox(decoded.pixels, size, decoded.original_width, decoded.original_height)
