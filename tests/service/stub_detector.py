"""A detector for tests of the HTTP layer alone: answers at once, or fails, waits or refuses as a test tells it.

Tests against the real runtime and a model repository are in `test_api_runtime.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from service.api.app import create_app
from service.contract import Answer, Ask
from service.errors import AsfdError
from service.imaging.decode import ImageHeader, decode
from service.settings import Settings

FACES = np.array([[10.04, 20.0, 50.0, 80.0], [60.0, 20.0, 70.0, 31.0]], dtype=np.float32)
SCORES = np.array([0.98765, 0.5], dtype=np.float32)


@dataclass
class StubDetector:
    """error: raised by detect; delay: seconds that detect takes; long_side: how small it decodes."""

    ready: bool = True
    status: str = "ready"
    failure: str | None = None
    queue_length: int = 0
    variants: list[Any] = field(default_factory=list)
    error: Exception | None = None
    refuse_all: AsfdError | None = None
    start_error: Exception | None = None
    delay: float = 0.0
    long_side: int | None = None
    asks: list[Ask] = field(default_factory=list)
    headers: list[ImageHeader] = field(default_factory=list)
    cancelled: int = 0
    drained: float | None = None
    closed: bool = False

    async def start(self) -> None:
        if self.start_error is not None:
            raise self.start_error

    async def detect(self, data: bytes, header: ImageHeader, ask: Ask) -> Answer:
        self.asks.append(ask)
        self.headers.append(header)
        decoded = decode(data, header, self.long_side)
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        total = (time.monotonic() - ask.received) * 1e3
        return Answer(
            boxes=FACES,
            scores=SCORES,
            width=decoded.original_width,
            height=decoded.original_height,
            variant="stub",
            member="stub",
            engine="none",
            input_height=480,
            input_width=640,
            ap50=0.5,
            budget_ms=ask.budget_ms,
            decode_ms=1.0,
            queue_ms=0.5,
            infer_ms=2.0,
            total_ms=total,
            predicted_ms=5.0,
            deadline_met=total <= ask.budget_ms,
            picture=decoded.picture,
            degraded=False,
        )

    async def detect_all(self, pictures: Sequence[tuple[bytes, ImageHeader]], ask: Ask) -> list[Answer | AsfdError]:
        if self.refuse_all is not None:
            raise self.refuse_all
        answers: list[Answer | AsfdError] = []
        for data, header in pictures:
            try:
                answers.append(await self.detect(data, header, ask))
            except AsfdError as error:
                answers.append(error)
        return answers

    async def drain(self, seconds: float) -> None:
        self.drained = seconds

    async def close(self) -> None:
        self.closed = True


@contextlib.contextmanager
def serving(stub: StubDetector | None = None, **settings: Any) -> Iterator[TestClient]:
    """A client of an app around `stub`; what the app raises comes back as the answer a real client would get."""
    detector = stub or StubDetector()
    app = create_app(Settings(**settings), lambda _settings, _metrics: detector)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def picture(
    file_format: str = "JPEG", size: tuple[int, int] = (64, 48), mode: str = "RGB", color: Any = 0, **options: Any
) -> bytes:
    """An encoded picture of one colour. size: (width, height); options: Pillow's of `save`."""
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, file_format, **options)
    return buffer.getvalue()
