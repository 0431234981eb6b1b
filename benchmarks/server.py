"""The service as a user starts it, in a process of its own, and a client that waits for each answer before it asks
again."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Server:
    """A running service. ready_seconds: from the start of the process to its first 200 at /health/ready."""

    port: int
    pid: int
    ready_seconds: float

    def resident_mib(self) -> float:
        """Resident memory of the process, MiB."""
        return float(psutil.Process(self.pid).memory_info().rss) / 2**20


@contextmanager
def running(
    repository: Path, cache: Path, threads: int, patience: float = 120.0, variables: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start `python -m service serve`, wait until it is ready, stop it at the end by SIGTERM.

    cache: folder of its latency profiles; an empty one makes a first start. variables: more `ASFD_*` variables. Raises
    RuntimeError with the service's last words where it does not become ready within `patience` seconds.
    """
    port = free_port()
    settings = {"ASFD_REPOSITORY": repository, "ASFD_CACHE_DIR": cache, "ASFD_INTRA_OP_THREADS": threads}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ASFD_")}
    environment |= {key: str(value) for key, value in settings.items()} | {"HOST": "127.0.0.1", "PORT": str(port)}
    environment |= variables or {}
    log = cache / "service.log"
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve"], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        while not is_ready(port):
            if process.poll() is not None or time.monotonic() - began > patience:
                words = log.read_text(errors="replace").strip().splitlines()[-5:]
                raise RuntimeError("the service did not become ready: " + " | ".join(words))
            time.sleep(0.02)
        yield Server(port, process.pid, time.monotonic() - began)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def is_ready(port: int) -> bool:
    """Whether /health/ready answers 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@dataclass(frozen=True)
class Exchange:
    """One request and its JSON answer. milliseconds: from before sending to after the last byte of the answer."""

    milliseconds: float
    answer: dict[str, Any]


def closed_loop(port: int, photo: bytes, query: str, requests: int, warm_up: int = 3) -> list[Exchange]:
    """Post `photo` (JPEG) `requests` times over one connection. Raises RuntimeError on any other status than 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    exchanges = []
    try:
        for number in range(warm_up + requests):
            began = time.perf_counter()
            connection.request("POST", f"/detect?{query}", body=photo, headers={"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            body = response.read()
            milliseconds = 1000 * (time.perf_counter() - began)
            if response.status != 200:
                raise RuntimeError(f"/detect?{query} answered {response.status}: {body[:300].decode(errors='replace')}")
            if number >= warm_up:
                exchanges.append(Exchange(milliseconds, json.loads(body)))
    finally:
        connection.close()
    return exchanges
