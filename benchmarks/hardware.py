"""What a measurement was made on: no number in `benchmarks/results/` stands without it."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path

import psutil
from pydantic import BaseModel

PACKAGES = ("numpy", "onnxruntime", "opencv-python-headless", "pillow", "torch", "torchvision", "facenet-pytorch")


class Hardware(BaseModel):
    """The machine, the software and the moment. load: the system's load average over the minute before."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    packages: dict[str, str]
    date: str
    load: float


def describe() -> Hardware:
    """Read all of it from the running system."""
    return Hardware(
        cpu=cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages={name: version for name in PACKAGES if (version := _version(name))},
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        load=round(os.getloadavg()[0], 2),
    )


def cpu_model() -> str:
    """The processor's name, as the kernel gives it; its architecture where it gives none."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
