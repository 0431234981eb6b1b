"""POST /detect: what reaches the runtime, and what comes back."""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient
from starlette.types import Message

from service.api.app import create_app
from service.api.schemas import DetectAnswer
from service.settings import Settings
from tests.service.stub_detector import FACES, StubDetector, picture, serving

JPEG = {"content-type": "image/jpeg"}
PHOTO = picture("JPEG", (320, 240), color=(90, 90, 90))


@pytest.fixture
def stub() -> StubDetector:
    return StubDetector()


@pytest.fixture
def client(stub: StubDetector) -> Iterator[TestClient]:
    with serving(stub) as opened:
        yield opened


def test_answer_is_what_the_schema_promises(client: TestClient) -> None:
    response = client.post("/detect", content=PHOTO, headers=JPEG)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = DetectAnswer.model_validate(response.json(), extra="forbid")
    assert [face.box for face in answer.faces] == [(10.0, 20.0, 50.0, 80.0), (60.0, 20.0, 70.0, 31.0)]
    assert [face.score for face in answer.faces] == [0.9876, 0.5]
    assert (answer.image.width, answer.image.height) == (320, 240)
    assert (answer.model.input.width, answer.model.input.height) == (640, 480)
    assert answer.latency.deadline_met
    assert answer.latency.total_ms > 0


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("declared", ["own", "image/png", "application/octet-stream", "image/jpeg; q=1", None])
def test_content_decides_about_raw_bodies(client: TestClient, file_format: str, declared: str | None) -> None:
    content_type = f"image/{file_format.lower()}" if declared == "own" else declared
    headers = {"content-type": content_type} if content_type else {}
    assert client.post("/detect", content=picture(file_format), headers=headers).status_code == 200


def test_form_and_raw_body_are_the_same_picture(client: TestClient, stub: StubDetector) -> None:
    client.post("/detect", content=PHOTO, headers=JPEG)
    assert client.post("/detect", files={"image": ("a.bin", PHOTO)}).status_code == 200
    assert stub.headers[0] == stub.headers[1]


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_form_arrives_whole_in_any_pieces(client: TestClient, stub: StubDetector, size: int) -> None:
    body = b'--xx\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n' + PHOTO + b"\r\n--xx--\r\n"
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    response = client.post("/detect", content=pieces, headers={"content-type": "multipart/form-data; boundary=xx"})
    assert response.status_code == 200
    assert stub.headers[0].size_bytes == len(PHOTO)


def test_parameters_reach_the_runtime(client: TestClient, stub: StubDetector) -> None:
    query = "tier=accurate&on_infeasible=reject&min_score=0.4&max_faces=3&min_face=12.5&variant=stub&long_side=640"
    before = time.monotonic()
    assert client.post(f"/detect?{query}", content=PHOTO, headers=JPEG).status_code == 200
    ask = stub.asks[0]
    assert (ask.budget_ms, ask.tier, ask.on_infeasible) == (3000.0, "accurate", "reject")
    assert (ask.min_score, ask.max_faces, ask.min_face) == (0.4, 3, 12.5)
    assert (ask.variant, ask.long_side) == ("stub", 640)
    assert before <= ask.received <= time.monotonic()


@pytest.mark.parametrize(
    ("query", "header", "budget", "tier"),
    [
        ("", None, 1000.0, "standard"),
        ("?tier=realtime", None, 150.0, "realtime"),
        ("?latency_ms=77.5", None, 77.5, None),
        ("", "250", 250.0, None),
        ("?tier=realtime", "250", 150.0, "realtime"),
        ("?latency_ms=10", "250", 10.0, None),
    ],
)
def test_budget_comes_from_query_then_header_then_default(
    client: TestClient, stub: StubDetector, query: str, header: str | None, budget: float, tier: str | None
) -> None:
    headers = {**JPEG, **({"X-Latency-Budget-Ms": header} if header else {})}
    assert client.post(f"/detect{query}", content=PHOTO, headers=headers).json()["latency"]["budget_ms"] == budget
    assert (stub.asks[0].budget_ms, stub.asks[0].tier) == (budget, tier)


def test_late_answers_say_so() -> None:
    with serving(StubDetector(delay=0.05)) as client:
        latency = client.post("/detect?latency_ms=10", content=PHOTO, headers=JPEG).json()["latency"]
    assert latency["total_ms"] >= 50
    assert latency["deadline_met"] is False


def test_server_timing_and_request_id(client: TestClient) -> None:
    response = client.post("/detect", content=PHOTO, headers={**JPEG, "X-Request-ID": "my-id.1"})
    assert response.headers["x-request-id"] == "my-id.1"
    assert response.json()["request_id"] == "my-id.1"
    timing = dict(re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"]))
    assert set(timing) == {"decode", "queue", "infer", "total"}
    assert float(timing["infer"]) == 2.0


@pytest.mark.parametrize("bad", ["", "a b", "x" * 200, "é"])
def test_malformed_request_ids_are_replaced(client: TestClient, bad: str) -> None:
    response = client.get("/health/live", headers={b"x-request-id": bad.encode("latin-1")})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


def test_traceparent_is_passed_on_if_well_formed(client: TestClient) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert client.get("/tiers", headers={"traceparent": trace}).headers["traceparent"] == trace
    assert "traceparent" not in client.get("/tiers", headers={"traceparent": "nonsense"}).headers


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "JPEG"),
        ("*/*", "JPEG"),
        ("image/png", "PNG"),
        ("image/png;q=0.5, image/jpeg", "JPEG"),
        ("image/png, image/jpeg;q=0.9", "PNG"),
        ("image/png;q=x", "JPEG"),
    ],
)
def test_annotated_picture_in_the_format_that_accept_prefers(
    client: TestClient, accept: str | None, expected: str
) -> None:
    headers = {**JPEG, **({"accept": accept} if accept else {})}
    response = client.post("/detect?return=image", content=PHOTO, headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"] == f"image/{expected.lower()}"
    image = Image.open(io.BytesIO(response.content))
    assert (image.format, image.size) == (expected, (320, 240))
    assert response.headers["x-face-count"] == str(len(FACES))
    assert "annotate;dur=" in response.headers["server-timing"]


def test_annotated_picture_is_as_large_as_the_original_though_the_detector_saw_less() -> None:
    with serving(StubDetector(long_side=320)) as client:
        large = picture("JPEG", (1600, 1200))
        response = client.post("/detect?return=image", content=large, headers=JPEG)
    assert Image.open(io.BytesIO(response.content)).size == (1600, 1200)


def test_not_ready_is_503_with_the_reason() -> None:
    with serving(StubDetector(ready=False, status="profiling d0 (3 of 12)")) as client:
        response = client.post("/detect", content=PHOTO, headers=JPEG)
        assert response.status_code == 503
        assert "profiling d0 (3 of 12)" in response.json()["detail"]
        assert int(response.headers["retry-after"]) >= 1


class _Wire:
    """Plays the server's side of one ASGI exchange, so that a test decides when bytes and disconnects come."""

    def __init__(self, stub: StubDetector, **settings: Any) -> None:
        self.app = create_app(Settings(**settings), lambda _settings, _metrics: stub)
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: list[Message] = []

    async def run(self) -> None:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/detect", "raw_path": b"/detect", "query_string": b"", "root_path": "",
            "headers": [(b"content-type", b"image/jpeg"), (b"transfer-encoding", b"chunked")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "app": self.app,
        }  # fmt: skip

        async def send(message: Message) -> None:
            self.sent.append(message)

        await self.app(scope, self.inbox.get, send)

    def status(self) -> int:
        return int(self.sent[0]["status"])


def test_client_that_leaves_during_detection_cancels_it() -> None:
    stub = StubDetector(delay=30)
    wire = _Wire(stub)

    async def scenario() -> None:
        await wire.inbox.put({"type": "http.request", "body": PHOTO, "more_body": False})
        running = asyncio.create_task(wire.run())
        while not stub.asks:
            await asyncio.sleep(0.01)
        await wire.inbox.put({"type": "http.disconnect"})
        await asyncio.wait_for(running, 5)
        assert stub.cancelled == 1  # here, because the loop's own end cancels whatever is left

    asyncio.run(scenario())


def test_client_that_leaves_during_upload_reaches_no_detector() -> None:
    stub = StubDetector()
    wire = _Wire(stub)

    async def scenario() -> None:
        await wire.inbox.put({"type": "http.request", "body": PHOTO[:100], "more_body": True})
        await wire.inbox.put({"type": "http.disconnect"})
        await asyncio.wait_for(wire.run(), 5)

    asyncio.run(scenario())
    assert stub.asks == []


def test_body_that_never_ends_is_refused_in_time() -> None:
    wire = _Wire(StubDetector(), body_timeout_seconds=0.1)

    async def scenario() -> None:
        await wire.inbox.put({"type": "http.request", "body": PHOTO[:100], "more_body": True})
        await asyncio.wait_for(wire.run(), 5)

    asyncio.run(scenario())
    assert wire.status() == 408
    assert b"100 bytes" in wire.sent[1]["body"]


def test_upload_counts_against_the_budget() -> None:
    stub = StubDetector()
    wire = _Wire(stub)

    async def scenario() -> None:
        await wire.inbox.put({"type": "http.request", "body": PHOTO[:100], "more_body": True})
        running = asyncio.create_task(wire.run())
        await asyncio.sleep(0.1)
        await wire.inbox.put({"type": "http.request", "body": PHOTO[100:], "more_body": False})
        await asyncio.wait_for(running, 5)

    asyncio.run(scenario())
    body = b"".join(message.get("body", b"") for message in wire.sent)
    total = float(re.findall(rb'"total_ms":([\d.]+)', body)[0])
    assert total >= 100
