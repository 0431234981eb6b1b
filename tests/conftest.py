"""Pictures that every test package may use: NASA's astronaut (public domain, in scikit-image) and a mosaic of it."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from skimage import data

Pixels = npt.NDArray[np.uint8]


def pytest_configure() -> None:
    """Heed Ctrl-C also where a shell that started the tests in the background had it ignored, which tests of
    interrupts would wait for in vain."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_cuda():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _has_cuda() -> bool:
    from service.engines.base import EngineError
    from service.engines.cuda import device

    try:
        return bool(device().name)
    except EngineError:  # without cuda-bindings, a driver or a device
        return False


@pytest.fixture(scope="session")
def astronaut() -> Pixels:
    """One face near the top, uint8 RGB [512, 512, 3]; read-only, so that no test can change it for another."""
    pixels: Pixels = np.ascontiguousarray(data.astronaut(), dtype=np.uint8)  # type: ignore[no-untyped-call]
    pixels.setflags(write=False)
    return pixels


@pytest.fixture(scope="session")
def crowd(astronaut: Pixels) -> Pixels:
    """Sixteen faces in a 4 by 4 mosaic of half-size copies, every other one mirrored, uint8 RGB [1024, 1024, 3]."""
    tile = np.asarray(Image.fromarray(astronaut).resize((256, 256), Image.Resampling.BILINEAR))
    rows = [np.concatenate([tile[:, :: 1 if (r + c) % 2 else -1] for c in range(4)], axis=1) for r in range(4)]
    mosaic: Pixels = np.ascontiguousarray(np.concatenate(rows, axis=0))
    mosaic.setflags(write=False)
    return mosaic


@pytest.fixture(scope="session")
def jpeg_bytes() -> Callable[..., bytes]:
    """A function (pixels uint8 [h, w, 3], quality=90, any other Pillow save option) -> JPEG file bytes."""

    def encode(pixels: Pixels, quality: int = 90, **options: Any) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, **options)
        return buffer.getvalue()

    return encode
