"""docker-compose.yml for real: the image is built, a photo gets its face, Prometheus scrapes, SIGTERM drains.

Grafana is left out, as its image is large: tests/deploy/test_files.py checks what it is given.
"""

from __future__ import annotations

import http.client
import json
import re
import urllib.request
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest

from tests.deploy.engine import Project, docker, get_json, inspect, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]

FACE = (222, 115)
"""Between eyes and mouth in skimage's astronaut, x and y."""


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    project = Project()
    try:
        project.compose("build", "asfd")
        project.compose("up", "-d", "asfd", "prometheus")
        try:
            wait_for("the service gets ready", lambda: "status" in get_json(project.service_url + "/health/ready"), 300)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{project.logs('asfd')}") from None
        yield project
    finally:
        project.down()


@pytest.fixture(scope="module")
def photo(astronaut: npt.NDArray[np.uint8], jpeg_bytes: Callable[..., bytes]) -> bytes:
    return jpeg_bytes(astronaut)


def test_photo_gets_its_face(project: Project, photo: bytes) -> None:
    request = urllib.request.Request(
        project.service_url + "/detect?tier=accurate", data=photo, headers={"Content-Type": "image/jpeg"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        answer = json.load(response)
    assert answer["image"] == {"width": 512, "height": 512}
    best = max(answer["faces"], key=lambda face: face["score"])
    left, top, right, bottom = best["box"]
    assert left < FACE[0] < right, best
    assert top < FACE[1] < bottom, best
    assert 50 < right - left < 250, best


def test_prometheus_scrapes_and_the_rules_load(project: Project) -> None:
    def scraped() -> bool:
        targets = get_json(project.prometheus_url + "/api/v1/targets")["data"]["activeTargets"]
        return {t["labels"]["job"]: t["health"] for t in targets} == {"asfd": "up", "prometheus": "up"}

    wait_for("Prometheus scrapes the service", scraped, 60)

    def counted() -> bool:
        query = "/api/v1/query?query=sum(asfd_requests_total)"
        result = get_json(project.prometheus_url + query)["data"]["result"]
        return bool(result) and float(result[0]["value"][1]) >= 1

    wait_for("the posted photo is counted", counted, 30)
    groups = get_json(project.prometheus_url + "/api/v1/rules")["data"]["groups"]
    assert {group["name"] for group in groups} == {"asfd-attainment", "asfd-alerts"}
    assert all(rule["health"] != "err" for group in groups for rule in group["rules"])


def test_promtool_accepts_rules_and_their_unit_tests(project: Project) -> None:
    checked = project.inside("prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = project.inside("prometheus", "promtool", "test", "rules", "/etc/prometheus/rules_test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_container_is_locked_down(project: Project) -> None:
    for service in ("asfd", "prometheus"):
        state = project.inspect(service)
        assert state["HostConfig"]["ReadonlyRootfs"] is True
        assert state["HostConfig"]["CapDrop"] == ["ALL"]
        assert "no-new-privileges:true" in state["HostConfig"]["SecurityOpt"]
        user = project.inside(service, "id", "-u").stdout.strip()
        assert re.fullmatch(r"[1-9]\d*", user), f"{service} runs as user {user!r}"
    refused = project.inside("asfd", "python", "-c", "open('/app/x', 'w')")
    assert "Read-only file system" in refused.stderr
    kept = project.inside("asfd", "python", "-c", "open('/var/cache/asfd/x', 'w')")
    assert kept.returncode == 0, kept.stderr


def test_image_holds_the_service_alone(project: Project) -> None:
    code = "import importlib.util as u; print([m for m in ('torch', 'training', 'export', 'pip') if u.find_spec(m)])"
    assert project.inside("asfd", "python", "-c", code).stdout.strip() == "[]"


def test_health_check_of_the_image(project: Project) -> None:
    wait_for("healthy", lambda: project.inspect("asfd")["State"]["Health"]["Status"] == "healthy", 60)


def test_sigterm_drains(project: Project, photo: bytes) -> None:
    """Last: a request whose body is half sent when SIGTERM comes still gets its answer, and the exit code is 0."""
    connection = http.client.HTTPConnection("127.0.0.1", project.service_port, timeout=30)
    connection.putrequest("POST", "/detect?tier=accurate")
    connection.putheader("Content-Type", "image/jpeg")
    connection.putheader("Content-Length", str(len(photo)))
    connection.endheaders()
    half = len(photo) // 2
    connection.send(photo[:half])

    def begun() -> bool:
        with urllib.request.urlopen(project.service_url + "/metrics", timeout=10) as answer:
            found = re.search(r"^asfd_in_flight_requests (\S+)", answer.read().decode(), re.MULTILINE)
        return found is not None and float(found[1]) >= 2  # the photo, and this look at the metrics

    wait_for("the request is in flight", begun, 30)
    container = project.container("asfd")
    docker("kill", "--signal", "TERM", container)
    connection.send(photo[half:])
    response = connection.getresponse()
    assert response.status == 200, response.read()
    assert json.load(response)["faces"]

    def stopped() -> bool:
        state = inspect(container)["State"]
        return not state["Running"] or state["Restarting"]

    wait_for("the container stops", stopped, 30)
    assert inspect(container)["State"]["ExitCode"] == 0, project.logs("asfd")
