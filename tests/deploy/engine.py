"""What the compose smoke test needs of Docker: a project of its own with free ports, always taken down again."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def docker(*arguments: str, check: bool = True, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    command = ["docker", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done


def inspect(container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("inspect", container).stdout)[0]
    return found


def get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> None:
    """Ask until `condition` holds; an OSError (connection refused, an HTTP error status) means not yet."""
    deadline = time.monotonic() + seconds
    last = ""
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except OSError as error:
            last = str(error)
        time.sleep(0.5)
    raise AssertionError(f"{what}: not within {seconds:.0f} s. {last}")


@dataclass
class Project:
    """One run of docker-compose.yml. Needs an engine that answers; says so where there is none."""

    name: str = field(default_factory=lambda: f"asfd-smoke-{os.getpid()}")
    service_port: int = field(default_factory=free_port)
    prometheus_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        if not shutil.which("docker") or docker("version", check=False).returncode:
            raise AssertionError("The smoke test needs a Docker engine, and `docker version` finds none that answers.")
        v2 = docker("compose", "version", check=False).returncode == 0
        self._compose = ["docker", "compose"] if v2 else ["docker-compose"]
        if not v2 and not shutil.which("docker-compose"):
            raise AssertionError("The smoke test needs `docker compose` or `docker-compose`.")

    @property
    def service_url(self) -> str:
        return f"http://127.0.0.1:{self.service_port}"

    @property
    def prometheus_url(self) -> str:
        return f"http://127.0.0.1:{self.prometheus_port}"

    def compose(self, *arguments: str, seconds: float = 900) -> str:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ASFD_")},
            "ASFD_PORT": str(self.service_port),
            "PROMETHEUS_PORT": str(self.prometheus_port),
            "BIND": "127.0.0.1",
        }
        done = subprocess.run(
            [*self._compose, "--project-name", self.name, *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=seconds,
        )  # fmt: skip
        if done.returncode:
            raise AssertionError(f"compose {' '.join(arguments)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done.stdout

    def container(self, service: str) -> str:
        return self.compose("ps", "-q", service).strip()

    def inspect(self, service: str) -> dict[str, Any]:
        return inspect(self.container(service))

    def inside(self, service: str, *command: str) -> subprocess.CompletedProcess[str]:
        return docker("exec", self.container(service), *command, check=False)

    def logs(self, service: str) -> str:
        return self.compose("logs", "--no-color", service)[-4000:]

    def down(self) -> None:
        self.compose("down", "--volumes", "--timeout", "5")
