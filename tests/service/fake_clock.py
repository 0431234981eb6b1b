"""An event loop whose clock stands still while code runs and jumps to the next timer when nothing is left to do."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jumping(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError("everything waits for something that never comes")
        self.now += max(timeout, 0.0)
        return super().select(0)


class FakeClockLoop(asyncio.SelectorEventLoop):
    """`loop.time()` starts at 0. Nothing in it may wait for threads or sockets."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_with_fake_clock(scenario: Coroutine[Any, Any, T]) -> T:
    """Run a scenario to its end; sleeping costs no time."""
    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        return runner.run(scenario)
