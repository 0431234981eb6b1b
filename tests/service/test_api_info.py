"""Tiers, health, start and stop, and the reference."""

from __future__ import annotations

import json
import time

import pytest
from starlette.testclient import TestClient

from service.api.app import create_app
from service.api.deps import Services
from service.api.query import QUERY_PARAMETERS
from service.api.schemas import DetectAnswer, Problem
from service.settings import Settings
from tests.service.stub_detector import StubDetector, picture, serving


def test_tiers_are_fastest_first_with_the_default_marked() -> None:
    with serving(tiers={"slow": 900, "quick": 90}, default_tier="slow") as client:
        assert client.get("/tiers").json()["tiers"] == [
            {"name": "quick", "budget_ms": 90.0, "default": False},
            {"name": "slow", "budget_ms": 900.0, "default": True},
        ]


def test_models_lists_what_the_runtime_has() -> None:
    with serving(StubDetector(variants=[{"variant": "d0"}])) as client:
        assert client.get("/models").json()["variants"] == [{"variant": "d0"}]


def test_health_follows_the_runtime() -> None:
    stub = StubDetector(ready=False, status="loading models")
    with serving(stub) as client:
        assert client.get("/health/live").status_code == 200
        waiting = client.get("/health/ready")
        assert (waiting.status_code, waiting.json()) == (503, {"status": "loading models"})
        stub.ready = True
        assert client.get("/health/ready").status_code == 200


def test_failed_start_is_told_and_the_process_stays_reachable() -> None:
    stub = StubDetector(ready=False, start_error=RuntimeError("models/d0/d0.onnx is damaged"))
    with serving(stub) as client:
        end = time.monotonic() + 5
        while "damaged" not in (text := client.get("/health/ready").text) and time.monotonic() < end:
            time.sleep(0.01)
        assert "models/d0/d0.onnx is damaged" in text
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200


def test_shutdown_drains_then_closes() -> None:
    stub = StubDetector()
    with serving(stub, drain_seconds=3):
        before = (stub.drained, stub.closed)
    assert before == (None, False)
    assert (stub.drained, stub.closed) == (3, True)


def test_while_draining_new_pictures_are_refused_and_readiness_says_why() -> None:
    app = create_app(Settings(), lambda _settings, _metrics: StubDetector())
    services: Services = app.state.services
    with TestClient(app) as client:
        services.state.draining = True
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert "draining" in ready.json()["status"]
        refused = client.post("/detect", content=picture(), headers={"content-type": "image/jpeg"})
        assert refused.status_code == 503
        assert "shutting down" in refused.json()["detail"]
        assert client.get("/health/live").status_code == 200


def test_two_apps_in_one_process_share_nothing() -> None:
    with serving() as first, serving() as second:
        first.post("/detect", content=picture(), headers={"content-type": "image/jpeg"})
        assert 'outcome="ok"' in first.get("/metrics").text
        assert 'outcome="ok"' not in second.get("/metrics").text


def test_openapi_shows_parameters_bodies_errors_and_examples() -> None:
    with serving() as client:
        document = client.get("/openapi.json").json()
    operation = document["paths"]["/detect"]["post"]
    assert {p["name"] for p in operation["parameters"]} == {*QUERY_PARAMETERS, "X-Latency-Budget-Ms"}
    assert all(p.get("description") for p in operation["parameters"])
    assert set(operation["requestBody"]["content"]) == {"image/jpeg", "image/png", "image/webp", "multipart/form-data"}
    assert set(operation["responses"]) == {"200", "400", "408", "413", "415", "422", "500", "503", "504"}
    for status, reply in operation["responses"].items():
        assert ("application/problem+json" in reply["content"]) == (status != "200")
    example = document["components"]["schemas"]["DetectAnswer"]["examples"][0]
    assert DetectAnswer.model_validate(example)
    assert Problem.model_validate(
        operation["responses"]["422"]["content"]["application/problem+json"]["schema"]["examples"][0]
    )


@pytest.mark.parametrize("path", ["/tiers", "/models", "/health/live", "/health/ready"])
def test_plain_answers_are_json(path: str) -> None:
    with serving() as client:
        response = client.get(path)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert json.loads(response.text)


def test_what_the_middleware_answers_itself_is_in_the_documentation() -> None:
    with serving() as client:
        documented = client.get("/openapi.json").json()["paths"]
        for path in ("/detect", "/detect/batch"):
            assert list(documented[path]) == ["post"]
            assert client.get(path).headers["allow"] == "POST"  # other methods go the framework's way
