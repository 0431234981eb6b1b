"""`unless_client_leaves`: work ends with its client, and whoever cancels the request itself is not told of a client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import pytest
from starlette.types import Message

from service.api.detect import ClientGoneError, unless_client_leaves


class Connection:
    """Gives what is left of a body at once, and the disconnect once `gone` is set."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.body_given = False
        self.ended = False

    async def receive(self) -> Message:
        if not self.body_given:
            self.body_given = True
            return {"type": "http.request", "body": b"", "more_body": False}
        try:
            await self.gone.wait()
        finally:
            self.ended = True
        return {"type": "http.disconnect"}


class Work:
    def __init__(self, seconds: float = 60.0, error: Exception | None = None) -> None:
        self.seconds, self.error, self.cancelled = seconds, error, False

    async def __call__(self) -> str:
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        return "done"


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20.0))


def test_the_answer_of_a_client_that_stays() -> None:
    async def scenario() -> None:
        connection = Connection()
        assert await unless_client_leaves(connection.receive, Work(0.05)()) == "done"
        await asyncio.sleep(0)
        assert connection.ended  # nobody goes on listening
        connection.gone.set()
        await asyncio.sleep(0.01)  # too late to cancel anything

    run(scenario())


def test_errors_of_the_work_come_through() -> None:
    async def scenario() -> None:
        with pytest.raises(ValueError, match="broken"):
            await unless_client_leaves(Connection().receive, Work(0.01, ValueError("broken"))())

    run(scenario())


def test_a_client_that_leaves_ends_the_work() -> None:
    async def scenario() -> None:
        connection, work = Connection(), Work()
        asyncio.get_running_loop().call_later(0.02, connection.gone.set)
        with pytest.raises(ClientGoneError):
            await unless_client_leaves(connection.receive, work())
        assert work.cancelled
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0  # the request's task goes on, to count it
        await asyncio.sleep(0)

    run(scenario())


@pytest.mark.parametrize("left", [False, True])
def test_a_cancelled_request_stays_cancelled(left: bool) -> None:
    async def scenario() -> None:
        connection, work = Connection(), Work()
        request = asyncio.create_task(unless_client_leaves(connection.receive, work()))
        await asyncio.sleep(0.02)
        request.cancel()
        if left:
            connection.gone.set()  # at the same moment
        with pytest.raises(asyncio.CancelledError):
            await request
        assert work.cancelled
        assert connection.ended

    run(scenario())


def test_work_that_is_done_as_the_client_leaves_ends_one_way_or_the_other() -> None:
    async def scenario() -> None:
        for _ in range(50):
            connection = Connection()
            asyncio.get_running_loop().call_later(0.001, connection.gone.set)
            with contextlib.suppress(ClientGoneError):
                assert await unless_client_leaves(connection.receive, Work(0.001)()) == "done"
            await asyncio.sleep(0.002)  # a cancellation left behind would end here

    run(scenario())
