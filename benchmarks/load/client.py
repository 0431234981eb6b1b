"""An open-loop client: every request is sent at its time, whatever became of the others.

A closed loop waits for a slow server and so hides what its users would see. The client shares the machine with the
service, hence asyncio streams and a dozen lines of HTTP/1.1: a request costs 0.3 ms of processor time, where `httpx`
took 1.0 to 1.4 on the same machine. Load generators with an open loop (vegeta, k6, wrk2) take a rate, not the times
of a trace. It only ever talks to 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"
MOST_IN_FLIGHT = 1024
"""Requests that may be without an answer at once; those beyond are not sent, and count as failed."""

NOT_SENT, TIMED_OUT, BROKEN = -1, -2, -3
"""Status of what has no answer: too many were in flight, none came in time, the connection broke."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One request. at_s: seconds from the start of the trace; budget_ms: what the client counts as on time."""

    at_s: float
    target: str
    body: bytes = field(repr=False)
    content_type: str
    budget_ms: float
    tier: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a request. latency_ms: by the client's clock, from before it connects to the last byte, whatever the
    server says; lag_ms: how much later than its time the client was itself; status: HTTP's, or one of those above.
    """

    status: int
    latency_ms: float
    lag_ms: float = 0.0
    timing: str = ""
    body: bytes = field(default=b"", repr=False)

    @property
    def answer(self) -> dict[str, Any]:
        """The JSON of the body, read only now: during a run the time is the service's."""
        answer = json.loads(self.body)
        assert isinstance(answer, dict)
        return answer

    def stages(self) -> dict[str, float]:
        """Milliseconds by the name of the stage, from the header Server-Timing."""
        parts = (part.strip().partition(";dur=") for part in self.timing.split(",") if ";dur=" in part)
        return {name: float(ms) for name, _, ms in parts}


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Client:
    """Keeps connections and opens one where all are busy. Belongs to one event loop."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []
        self.in_flight = 0

    async def post(self, shot: Shot, timeout_s: float, lag_ms: float = 0.0) -> Reply:
        """Send a request and read its answer. Never raises for what the server does."""
        if self.in_flight >= MOST_IN_FLIGHT:
            return Reply(NOT_SENT, 0.0, lag_ms)
        self.in_flight += 1
        began = time.perf_counter()
        connection: Connection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                connection = self._kept() or await asyncio.open_connection(HOST, self._port)
                status, headers, body = await self._exchange(connection, shot)
            latency_ms = (time.perf_counter() - began) * 1e3
            if headers.get("connection", "").lower() != "close":
                self._idle.append(connection)
                connection = None
            return Reply(status, latency_ms, lag_ms, headers.get("server-timing", ""), body)
        except TimeoutError:
            return Reply(TIMED_OUT, (time.perf_counter() - began) * 1e3, lag_ms)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            return Reply(BROKEN, (time.perf_counter() - began) * 1e3, lag_ms)
        finally:
            self.in_flight -= 1
            if connection is not None:
                connection[1].close()

    def _kept(self) -> Connection | None:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return None

    async def _exchange(self, connection: Connection, shot: Shot) -> tuple[int, dict[str, str], bytes]:
        reader, writer = connection
        head = (
            f"POST {shot.target} HTTP/1.1\r\nHost: {HOST}:{self._port}\r\nContent-Type: {shot.content_type}\r\n"
            f"Content-Length: {len(shot.body)}\r\n\r\n"
        )
        writer.write(head.encode("ascii") + shot.body)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, status, *_ = first.split(" ", 2)
        if not version.startswith("HTTP/1."):
            raise ValueError(f"{first[:40]!r} is no answer of HTTP/1.1")
        headers = {
            name.lower(): value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon
        }
        # uvicorn states the length of every body that is there as a whole, as all of /detect are.
        return int(status), headers, await reader.readexactly(int(headers["content-length"]))

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in self._idle), return_exceptions=True)
        self._idle.clear()


async def play(
    port: int, shots: Sequence[Shot], extra_s: float = 20.0, told: Callable[[], object] = lambda: None
) -> list[Reply]:
    """Send every request at its time; replies in the order of `shots`, which ascend by `at_s`.

    extra_s: how long after its budget a request is waited for; told: called as each ends.
    """
    client = Client(port)
    replies: list[Reply | None] = [None] * len(shots)

    async def send(number: int, lag_ms: float) -> None:
        shot = shots[number]
        replies[number] = await client.post(shot, shot.budget_ms / 1e3 + extra_s, lag_ms)
        told()

    start = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for number, shot in enumerate(shots):
                # Even where it is late it lets the others run, which may be why it is.
                await asyncio.sleep(max(start + shot.at_s - time.perf_counter(), 0.0))
                group.create_task(send(number, (time.perf_counter() - start - shot.at_s) * 1e3))
    finally:
        await client.close()
    return [reply for reply in replies if reply is not None]


async def one_by_one(port: int, shots: Sequence[Shot], timeout_s: float = 60.0) -> list[Reply]:
    """Send each request when the one before it is answered."""
    client = Client(port)
    try:
        return [await client.post(shot, timeout_s) for shot in shots]
    finally:
        await client.close()


async def saturate(port: int, shots: Sequence[Shot], seconds: float, clients: int, warm_up_s: float = 1.0) -> float:
    """Answers a second with `clients` that each ask again at once, `shots` round and round, after the warm-up.

    Raises RuntimeError on any status but 200.
    """
    client = Client(port)
    start = time.perf_counter() + warm_up_s
    ends: list[float] = []

    async def ask(first: int) -> None:
        number = first
        while time.perf_counter() < start + seconds:
            reply = await client.post(shots[number % len(shots)], 60.0)
            if reply.status != 200:
                raise RuntimeError(f"{shots[number % len(shots)].target} answered {reply.status}: {reply.body[:300]!r}")
            ends.append(time.perf_counter())
            number += clients

    try:
        await asyncio.gather(*(ask(number) for number in range(clients)))
    finally:
        await client.close()
    # Between two answers, because a window's edges would count parts of runs.
    within = [end for end in ends if start <= end <= start + seconds]
    if len(within) < 2:
        raise RuntimeError(f"fewer than two answers within {seconds:g} s: the machine is too busy to measure anything")
    return (len(within) - 1) / (within[-1] - within[0])
