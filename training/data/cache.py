"""Decoded pictures in one memory-mapped file, so that each is decoded once however many epochs there are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A picture, of which the block may decode the pixels.

    Raises FileNotFoundError, and ValueError that names the file where it cannot be read as a picture: a decoder's own
    words often do not.
    """
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a picture") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def load_picture(path: Path) -> NDArray[np.uint8]:
    """Decode one picture to uint8 [h, w, 3] RGB, upright by its EXIF orientation. Raises what `opened` does."""
    with opened(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


class PictureCache:
    """Random access to decoded pictures: `cache[i]` is uint8 [h, w, 3], backed by the file, read by the page.

    The operating system keeps in memory what fits. Built once, at first use; a build that was cut off starts over.
    """

    def __init__(self, data: Path, shapes: NDArray[np.int64], offsets: NDArray[np.int64]) -> None:
        self._path, self._shapes, self._offsets = data, shapes, offsets
        self._map: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        height, width = self.shape(index)
        start = int(self._offsets[index])
        return self.flat[start : start + height * width * 3].reshape(height, width, 3)

    def shape(self, index: int) -> tuple[int, int]:
        """Height and width of a picture, known without touching its pixels."""
        height, width = self._shapes[index]
        return int(height), int(width)

    @property
    def flat(self) -> NDArray[np.uint8]:
        """All pictures one after another, rows of RGB: uint8 [bytes], the file's memory map."""
        if self._map is None:  # opened by each worker for itself
            self._map = np.memmap(self._path, dtype=np.uint8, mode="r")
        return self._map

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each picture begins in `flat`, in bytes: int64 [pictures]."""
        return self._offsets

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_map": None}


def build_cache(pictures: Sequence[Path], folder: Path, threads: int = 2) -> PictureCache:
    """Open the cache of exactly these pictures in `folder`, making it first where it is not there yet."""
    stamp = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in pictures]
    key = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:16]
    data, index = folder / f"{key}.rgb", folder / f"{key}.npz"
    if not index.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.*.tmp"):  # gigabytes, of a build that was killed
            if abandoned(left.stem.rpartition(".")[2]):
                left.unlink(missing_ok=True)
        shapes = _write_pixels(pictures, data, threads)
        partial = folder / f"{key}.{os.getpid()}.npz"
        np.savez(partial, shapes=np.array(shapes, dtype=np.int64).reshape(-1, 2))
        partial.replace(index)
    with np.load(index) as saved:
        shapes_array: NDArray[np.int64] = saved["shapes"]
    sizes = shapes_array.prod(axis=1) * 3
    offsets = np.concatenate(([0], np.cumsum(sizes)))[:-1].astype(np.int64)
    return PictureCache(data, shapes_array, offsets)


def abandoned(process: str) -> bool:
    """Whether a partial file that has this process id in its name is nobody's any more: that process is gone, or us."""
    if not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return int(process) == os.getpid()


def _write_pixels(pictures: Sequence[Path], data: Path, threads: int) -> list[tuple[int, int]]:
    shapes: list[tuple[int, int]] = []
    partial = data.with_suffix(f".{os.getpid()}.tmp")
    with partial.open("wb") as out, ThreadPoolExecutor(threads) as pool:
        for pixels in tqdm(pool.map(load_picture, pictures), total=len(pictures), desc="decoding", unit="photo"):
            shapes.append((pixels.shape[0], pixels.shape[1]))
            out.write(pixels.tobytes())
    partial.replace(data)
    return shapes
