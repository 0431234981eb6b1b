"""One queue before one engine thread: earliest deadline first, and every job gets exactly one answer."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.errors import DeadlinePassedError, NotReadyError

T = TypeVar("T")


@dataclass
class _Job(Generic[T]):
    work: Callable[[], T]
    deadline: float
    expires: float
    expected_s: float
    future: asyncio.Future[T]
    expiry: asyncio.TimerHandle | None = field(default=None)


class EngineQueue(Generic[T]):
    """Runs jobs one at a time on a thread of its own. All methods belong to the event loop's thread."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Job[T]]] = []
        self._order = itertools.count()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._busy_until = 0.0
        self._running: _Job[T] | None = None
        self._closed = False
        self._task = asyncio.create_task(self._dispatch(), name="engine-queue")

    def __len__(self) -> int:
        """Jobs that wait, without the running one."""
        return sum(1 for _, _, job in self._heap if not job.future.done())

    def wait_s(self, deadline: float) -> float:
        """Predicted seconds until the engine is free for a job of this deadline (time.monotonic seconds)."""
        ahead = sum(job.expected_s for at, _, job in self._heap if at <= deadline and not job.future.done())
        running = max(self._busy_until - time.monotonic(), 0.0) if self._running else 0.0
        return ahead + running

    async def run(self, work: Callable[[], T], *, deadline: float, expires: float, expected_s: float) -> T:
        """Queue `work` and return what it returns, or raise what it raises.

        deadline orders the queue; a job that has not started at `expires` raises `DeadlinePassedError` at once, even
        while another runs. Cancelling the caller takes a waiting job out. A closed queue raises `NotReadyError`.
        """
        if self._closed:
            raise _stopping()
        if expires <= time.monotonic():
            raise _passed()
        loop = asyncio.get_running_loop()
        job = _Job(work, deadline, expires, expected_s, loop.create_future())
        job.expiry = loop.call_later(max(expires - time.monotonic(), 0.0), self._expire, job)
        heapq.heappush(self._heap, (deadline, next(self._order), job))
        self._wake.set()
        try:
            result: T = await job.future
            return result
        finally:
            if job.expiry:
                job.expiry.cancel()

    def _expire(self, job: _Job[T]) -> None:
        if job is not self._running and not job.future.done():
            job.future.set_exception(_passed())

    async def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._heap:
                if self._closed:
                    return
                self._wake.clear()
                await self._wake.wait()
            _, _, job = heapq.heappop(self._heap)
            if job.future.done():  # expired or cancelled meanwhile
                continue
            if job.expires <= time.monotonic():  # its timer is due as well, but may come after this line
                self._expire(job)
                continue
            self._running, self._busy_until = job, time.monotonic() + job.expected_s
            try:
                result = await loop.run_in_executor(self._thread, job.work)
            except Exception as error:
                if not job.future.done():
                    job.future.set_exception(error)
            else:
                if not job.future.done():
                    job.future.set_result(result)
            finally:
                self._running = None

    async def close(self) -> None:
        """Stop. What waits is told `NotReadyError`; what runs cannot be interrupted, so it still gets its answer."""
        self._closed = True
        for _, _, job in self._heap:
            if not job.future.done():
                job.future.set_exception(_stopping())
        self._heap.clear()
        self._wake.set()
        await asyncio.wait([self._task])
        await asyncio.to_thread(self._thread.shutdown)


def _passed() -> DeadlinePassedError:
    return DeadlinePassedError("The budget ran out while the request waited for the engine. Ask for a longer one.")


def _stopping() -> NotReadyError:
    return NotReadyError("The service is stopping. Send the request again shortly.")
