"""The service's core without HTTP: who is let in, decoding, the dispatcher, and what comes of it."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from service import profiling
from service.contract import Answer, Ask
from service.engine_thread import EngineThread
from service.engines.base import Detections, DeviceLostError, EngineError
from service.errors import (
    AsfdError,
    DeadlinePassedError,
    EngineFailureError,
    EngineLostError,
    NotReadyError,
)
from service.gate import Gate, Picture, infeasible
from service.imaging.decode import Decoded, ImageHeader, decode
from service.letterbox import Fitted, letterbox, to_original
from service.models import Models, load_models
from service.observer import Observer, SilentObserver
from service.repository.manifest import InputSize
from service.scheduling.dispatcher import Dispatcher, Ran
from service.scheduling.policies import make_policy
from service.scheduling.problem import Reason
from service.settings import Settings

_LOG = logging.getLogger(__name__)

# A request that accepts being late still gets an answer or a 504 within this time after its deadline.
_LATE_LIMIT_S = 10.0
# A run that takes so many times its predicted p99, and at least so long, will never end.
_HUNG_TIMES, _HUNG_S = 30.0, 30.0
_RESTART_S = 10.0  # that clients wait for a new process
_LEARN_AFTER_S = 0.005  # behind a run, when its answers are sent


@dataclass(frozen=True, slots=True)
class _Found:
    faces: Detections
    fitted: Fitted


class Runtime:
    """Detects faces within budgets. `start` first; all methods belong to one event loop."""

    def __init__(self, settings: Settings, observer: Observer | None = None) -> None:
        self._settings = settings
        self._observer: Observer = observer or SilentObserver()
        self._status = "not started"
        self._models: Models | None = None
        self._gate: Gate | None = None
        self._dispatcher: Dispatcher[Picture, _Found] | None = None
        self._decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._engine = EngineThread("engine")
        self._draining = False
        self._stop_building = threading.Event()
        self._failure: str | None = None

    @property
    def ready(self) -> bool:
        return self._dispatcher is not None and not self._draining and self._failure is None

    @property
    def status(self) -> str:
        """A word or a sentence for people: what the service is doing."""
        return self._failure or ("draining" if self._draining else self._status)

    @property
    def failure(self) -> str | None:
        """Why this process can answer nothing any more, should it come to that; only a new process helps then."""
        return self._failure

    @property
    def queue_length(self) -> int:
        return len(self._dispatcher) if self._dispatcher else 0

    @property
    def profile(self) -> profiling.Profile | None:
        return self._models.profile if self._models else None

    @property
    def variants(self) -> list[dict[str, Any]]:
        """Every variant with its accuracy, memory and live latencies, as plain containers."""
        return self._models.describe() if self._models else []

    async def start(self) -> None:
        """Load, verify, profile, warm up. Raises `RepositoryError` or `EngineError` where the models are unusable."""
        models = await asyncio.to_thread(
            load_models, self._settings, self._say, observer=self._observer, stop=self._stop_building
        )
        self._models, self._gate = models, Gate(models, self._settings, self._observer)
        policy = make_policy(self._settings.policy, self._settings.tiers)
        self._dispatcher = Dispatcher(
            policy, models.arms, self._run, statistics=self._gate.statistics, typical=models.typical, ran=self._ran,
            decided=self._observer.decision,
        )  # fmt: skip
        self._status = "ready"

    def _say(self, status: str) -> None:
        self._status = status
        _LOG.info("%s", status)

    async def detect(self, data: bytes, header: ImageHeader, ask: Ask) -> Answer:
        """Answer one request. Raises the errors of `service.errors`."""
        gate, dispatcher = self._started()
        picture = gate.let_in([(data, header)], ask, dispatcher.free_at())[0]
        return await self._answer(gate, dispatcher, picture, ask)

    async def detect_all(self, pictures: Sequence[tuple[bytes, ImageHeader]], ask: Ask) -> list[Answer | AsfdError]:
        """Answer several pictures within one budget, each with its faces or with an error of its own.

        Raises `QueueFullError`, `InfeasibleError` and `BadParameterError` for all of them together.
        """
        gate, dispatcher = self._started()
        admitted = gate.let_in(pictures, ask, dispatcher.free_at())
        tasks = [asyncio.create_task(self._answer(gate, dispatcher, picture, ask)) for picture in admitted]
        try:
            await asyncio.wait(tasks)
            return [_outcome(task) for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _started(self) -> tuple[Gate, Dispatcher[Picture, _Found]]:
        if self._failure is not None:
            raise _lost()
        if self._gate is None or self._dispatcher is None or self._draining:
            raise NotReadyError(f"The service is not ready: {self.status}. Try again shortly.")
        return self._gate, self._dispatcher

    async def _answer(
        self, gate: Gate, dispatcher: Dispatcher[Picture, _Found], picture: Picture, ask: Ask
    ) -> Answer:  # fmt: skip
        try:
            expires = ask.deadline + (_LATE_LIMIT_S if ask.on_infeasible == "degrade" else 0.0)
            await self._decode(gate, picture, expires)
            queued = time.monotonic()
            try:
                ran = await dispatcher.submit(
                    picture,
                    # Behind everybody who can still be on time, since it cannot.
                    deadline=queued if picture.late else ask.deadline,
                    expires=expires,
                    arms=picture.arms,
                    refused=lambda: self._dropped(gate, ask),
                    late_ok=ask.on_infeasible == "degrade",
                    tier=ask.tier or "",
                )
            except DeadlinePassedError:
                gate.shed("expired")
                raise
            except EngineError as error:
                _LOG.error("%s", error)
                raise EngineFailureError(
                    "The detector failed on this picture; the cause is in the service's log."
                ) from None
            return self._finish(picture, ask, ran, (ran.started - queued) * 1e3)
        finally:
            gate.leaves(picture)

    def _dropped(self, gate: Gate, ask: Ask) -> AsfdError:
        """The policy found that nothing can answer it in time any more."""
        gate.shed("infeasible")
        assert self._dispatcher is not None
        fastest = min(arm.latency_ms[0] for arm in self._models.arms()) if self._models else 0.0
        wait_s = gate.backlog_s(self._dispatcher.free_at())
        return infeasible(ask, ask.budget_ms - ask.left_ms() + wait_s * 1e3 + fastest, wait_s)

    async def _decode(self, gate: Gate, picture: Picture, expires: float) -> None:
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(max(expires - began, 0.0)):
                picture.decoded, picture.fitted = await loop.run_in_executor(
                    self._decoders, _prepare, picture.data, picture.header, picture.decode_for, picture.fit_for
                )
        except TimeoutError:
            gate.shed("expired")
            raise DeadlinePassedError(
                "The budget ran out before the picture was decoded. Ask for a longer one, or send a smaller picture."
            ) from None
        except asyncio.CancelledError:
            # `close` cancels what still waits for a decoder; that is not the client going away.
            task = asyncio.current_task()
            if self._draining and task is not None and not task.cancelling():
                raise NotReadyError("The service is stopping. Send the request again shortly.") from None
            raise
        finally:
            gate.decoded(picture)
        picture.decode_ms = (time.monotonic() - began) * 1e3
        self._observer.stage("decode", picture.decode_ms / 1e3)

    async def _run(self, arm: int, pictures: Sequence[Picture]) -> Sequence[_Found]:
        """One batch on the engine's thread."""
        assert self._gate is not None
        assert self._models is not None
        for picture in pictures:
            self._gate.starts(picture, self._models.index.keys[arm][1])
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._engine, self._infer, arm, pictures)
        limit = self._limit_s(arm, len(pictures))
        watch = loop.call_later(limit, self._hung, running, limit)
        try:
            return await running
        except DeviceLostError as error:
            raise self._lose(f"the engine has lost its device: {error}") from error
        except asyncio.CancelledError:
            if self._failure is not None:
                raise _lost() from None
            raise
        finally:
            watch.cancel()

    def _limit_s(self, arm: int, batch: int) -> float:
        """Seconds after which a run counts as hung."""
        assert self._models is not None
        predicted = self._models.arms()[arm].seconds(batch)
        return self._settings.engine_timeout_seconds or max(_HUNG_TIMES * predicted, _HUNG_S)

    def _hung(self, running: asyncio.Future[list[_Found]], limit: float) -> None:
        if running.done():
            return  # it was the event loop that was held up, and the run's end waits to be noticed
        self._lose(f"the engine hangs: a run has taken {limit:g} s and is not done")
        running.cancel()

    def _lose(self, reason: str) -> EngineLostError:
        """Answer everything inside now, and let the process be replaced: nothing will run here any more."""
        if self._failure is None:
            self._failure = reason
            _LOG.critical("%s", reason)
            if self._dispatcher is not None:
                self._dispatcher.abort(_lost)
        return _lost()

    def _infer(self, arm: int, pictures: Sequence[Picture]) -> list[_Found]:
        assert self._models is not None
        variant, size = self._models.index.keys[arm]
        fitted = []
        for picture in pictures:
            decoded, ready = picture.decoded, picture.fitted
            assert decoded is not None
            assert ready is not None
            if ready.canvas.shape[:2] != (size.height, size.width):
                ready = letterbox(decoded.picture, size, decoded.original_width, decoded.original_height)
            fitted.append(ready)
        stacked = fitted[0].canvas[None] if len(fitted) == 1 else np.stack([one.canvas for one in fitted])
        found = self._models.loaded[variant].engine.run(stacked)
        return [_Found(faces, fit) for faces, fit in zip(found, fitted, strict=True)]

    def _ran(self, arm: int, batch: int, seconds: float, reason: Reason) -> None:
        """Learn of a run, a little later: now its answers are on their way."""
        asyncio.get_running_loop().call_later(_LEARN_AFTER_S, self._learn, arm, batch, seconds, reason)

    def _learn(self, arm: int, batch: int, seconds: float, reason: Reason) -> None:
        assert self._models is not None
        predicted = self._models.observe(arm, batch, seconds * 1e3)
        variant, _ = self._models.index.keys[arm]
        self._observer.stage("infer", seconds)
        self._observer.dispatch("on_time" if reason == "on_time" else "degraded", batch)
        self._observer.predicted_vs_actual(predicted / max(seconds * 1e3, 1e-3), variant)
        self._models.refresh()
        if self._dispatcher is not None:
            self._dispatcher.rehearse()
        if content := self._models.correction_due():
            asyncio.get_running_loop().run_in_executor(None, self._models.save, content)

    def _finish(self, picture: Picture, ask: Ask, ran: Ran[_Found], queue_ms: float) -> Answer:
        assert self._models is not None
        assert picture.decoded is not None
        loaded, arm, found = self._models.loaded[ran.arm.variant], ran.arm, ran.result
        width, height = picture.decoded.original_width, picture.decoded.original_height
        boxes = to_original(found.faces.boxes, found.fitted, width, height)
        keep = found.faces.scores >= (ask.default_min_score if ask.min_score is None else ask.min_score)
        if ask.min_face > 0:
            keep &= (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=math.inf) >= ask.min_face
        boxes, scores = boxes[keep][: ask.max_faces], found.faces.scores[keep][: ask.max_faces]
        total_ms = ask.budget_ms - ask.left_ms()
        observer = self._observer
        observer.queue_wait(queue_ms / 1e3)
        observer.faces(len(scores))
        return Answer(
            boxes=boxes,
            scores=scores,
            width=width,
            height=height,
            variant=arm.variant,
            member=loaded.variant.manifest.member,
            engine=loaded.engine.kind,
            input_height=arm.size.height,
            input_width=arm.size.width,
            ap50=arm.ap50 or None,
            budget_ms=ask.budget_ms,
            decode_ms=picture.decode_ms,
            queue_ms=queue_ms,
            infer_ms=ran.seconds * 1e3,
            total_ms=total_ms,
            predicted_ms=(ran.started - ask.received + arm.seconds(ran.batch)) * 1e3,
            deadline_met=total_ms <= ask.budget_ms,
            picture=picture.decoded.picture,
            degraded=ran.reason == "late",
            batch=ran.batch,
        )

    async def drain(self, seconds: float) -> None:
        """Take nothing new; wait at most `seconds` for what is under way."""
        self._draining = True
        until = time.monotonic() + seconds
        while self._gate and self._gate.inside and time.monotonic() < until:
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Stop the engine's and the decoders' threads, and keep what was learnt of the machine."""
        self._draining = True
        self._stop_building.set()
        if self._dispatcher is not None:
            await self._dispatcher.close()
            self._dispatcher = None
        await asyncio.to_thread(self._decoders.shutdown, wait=True, cancel_futures=True)
        if self._failure is not None:
            # Its thread may hang inside an engine, which nobody may touch then.
            self._engine.shutdown(wait=False)
            return
        await asyncio.to_thread(self._engine.shutdown)
        if self._models is not None:
            await asyncio.to_thread(self._models.close)


def _lost() -> EngineLostError:
    return EngineLostError(
        "The detector's engine has failed for good, and the service is restarting. Send the request again shortly.",
        retry_after_s=_RESTART_S,
    )


def _outcome(task: asyncio.Task[Answer]) -> Answer | AsfdError:
    """What came of one picture; raises what is no error of the service's own."""
    if task.cancelled():
        raise asyncio.CancelledError
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, AsfdError):
        return error
    raise error


def _prepare(data: bytes, header: ImageHeader, decode_for: InputSize, fit_for: InputSize) -> tuple[Decoded, Fitted]:
    """On a decoder's thread."""
    decoded = decode(data, header, decode_for.long_side)
    return decoded, letterbox(decoded.picture, fit_for, decoded.original_width, decoded.original_height)
