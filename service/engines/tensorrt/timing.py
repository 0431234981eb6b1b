"""TensorRT's timing cache: what each kernel took on this GPU, kept between builds, which makes later ones much shorter.

It holds for one version of TensorRT and one kind of GPU; both stand in the file's name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from service.engines.tensorrt.types import IBuilderConfig, IHostMemory, ITimingCache


def timing_cache_file(folder: Path, tensorrt: str, compute_capability: str) -> Path:
    """Where a timing cache lies in a folder."""
    return folder / f"timing.trt{tensorrt}.sm{compute_capability.replace('.', '')}.bin"


def attach_timing_cache(config: IBuilderConfig, path: Path | None, say: Callable[[str], None]) -> ITimingCache | None:
    """Let the build use and fill the cache in `path`, a new one where there is none that fits. None without a path."""
    if path is None:
        return None
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    except OSError as error:
        say(f"the timing cache {path} cannot be read ({error.strerror}); the build measures everything itself")
        data = b""
    cache: ITimingCache = config.create_timing_cache(data)
    if cache is not None and config.set_timing_cache(cache, False):
        return cache
    say(f"the timing cache {path} is of another GPU or version, or damaged; it begins anew")
    cache = config.create_timing_cache(b"")
    return cache if cache is not None and config.set_timing_cache(cache, False) else None


def keep_timing_cache(cache: ITimingCache, path: Path, say: Callable[[str], None]) -> None:
    """Write the cache atomically. That it cannot be written costs the next build its time, and this one nothing."""
    memory: IHostMemory = cache.serialize()
    if memory is None:
        say(f"TensorRT does not give its timing cache away; {path} stays as it was")
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(bytes(memory))
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        say(f"the timing cache {path} cannot be written ({error.strerror}); the next build takes as long as this one")
