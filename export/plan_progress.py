"""TensorRT's progress as bars."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class Bars:
    """`service.engines.tensorrt.build.Progress`: a bar for each phase, the inner below the outer, gone when done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: dict[str, tqdm[Any]] = {}

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._close(phase)
            self._bars[phase] = tqdm(total=steps, desc=phase, position=len(self._bars), leave=False, unit="step")

    def step(self, phase: str, step: int) -> None:
        with self._lock:
            bar = self._bars.get(phase)
            if bar is not None:
                bar.update(step + 1 - bar.n)

    def finish(self, phase: str) -> None:
        with self._lock:
            self._close(phase)

    def close(self) -> None:
        """Remove what is left of a build that ended early."""
        with self._lock:
            for phase in list(self._bars):
                self._close(phase)

    def _close(self, phase: str) -> None:
        bar = self._bars.pop(phase, None)
        if bar is not None:
            bar.close()


@contextmanager
def bars() -> Iterator[Bars]:
    """Bars that are gone when the block ends, however it ends."""
    shown = Bars()
    try:
        yield shown
    finally:
        shown.close()
