"""The image for GPUs where there is none: it is whole, says what is missing, and serves on the CPU.

Without the CUDA libraries (`CUDA_LIBRARIES=none`), which are gigabytes that nothing here could use.
"""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest

from tests.deploy.engine import docker, free_port, get_json, inspect, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

LOCKED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true", "--tmpfs=/tmp")
CONTENT = """
import importlib.util, json, onnxruntime, tensorrt_lean
from cuda.bindings import runtime
absent = [name for name in ("torch", "training", "export", "pip", "tensorrt") if not importlib.util.find_spec(name)]
print(json.dumps([onnxruntime.get_available_providers(), hasattr(tensorrt_lean, "Builder"), absent]))
"""


@pytest.fixture(scope="module")
def image() -> str:
    name = "asfd:gpu-smoke"
    arguments = [f"--build-arg={key}={os.environ[key]}" for key in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
                 if key in os.environ]  # fmt: skip
    docker(
        "build", "-q", "--target=gpu", "--build-arg=CUDA_LIBRARIES=none", *arguments, "-t", name, ".", seconds=1500
    )  # fmt: skip
    return name


@pytest.fixture
def url(image: str) -> Iterator[tuple[str, str]]:
    """A running service that takes the container for one with a GPU: (its address, its container)."""
    port = free_port()
    container = docker(
        "run", "--detach", *LOCKED, "--volume=/dev/null:/dev/nvidiactl", f"--publish=127.0.0.1:{port}:8000", image
    ).stdout.strip()
    try:
        yield f"http://127.0.0.1:{port}", container
    finally:
        docker("rm", "--force", "--volumes", container, check=False)


def test_image_is_whole(image: str) -> None:
    done = docker("run", "--rm", *LOCKED, "--entrypoint=python", image, "-c", CONTENT)
    providers, builder, absent = json.loads(done.stdout.splitlines()[-1])
    assert "CUDAExecutionProvider" in providers
    assert not builder
    assert absent == ["torch", "training", "export", "pip", "tensorrt"]
    assert "telemetry" not in done.stderr


@pytest.mark.parametrize("engine", ["cuda", "tensorrt"])
def test_refuses_to_start_without_what_it_was_told_to_use(image: str, engine: str) -> None:
    done = docker("run", "--rm", *LOCKED, f"--env=ASFD_ENGINE={engine}", image, check=False)
    assert done.returncode != 0
    assert f"ASFD_ENGINE is {engine}" in done.stderr
    assert "driver" in done.stderr
    assert "Traceback" not in done.stderr


def test_serves_on_the_cpu_and_counts_why(
    url: tuple[str, str], astronaut: npt.NDArray[np.uint8], jpeg_bytes: Callable[..., bytes]
) -> None:
    address, container = url
    try:
        wait_for("the service gets ready", lambda: "status" in get_json(address + "/health/ready"), 600)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{docker('logs', '--tail=40', container).stderr}") from None
    headers = {"Content-Type": "image/jpeg"}
    request = urllib.request.Request(address + "/detect?tier=accurate", data=jpeg_bytes(astronaut), headers=headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        answer = json.load(response)
    assert answer["model"]["engine"] == "onnxruntime-cpu"
    assert answer["faces"]
    with urllib.request.urlopen(address + "/metrics", timeout=10) as response:
        steps = re.findall(r'^asfd_engine_fallback_total\{.*reason="(\w+)".*\} (\S+)', response.read().decode(), re.M)
    assert steps == [("no_device", "1.0")] * 2  # to ONNX Runtime CUDA, and on to the CPU
    assert inspect(container)["Config"]["User"] == "10001:10001"
