"""Whatever a client sends, it gets problem+json with the right status and a sentence, and the service goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.errors import AsfdError, DeadlinePassedError, EngineFailureError, InfeasibleError, QueueFullError
from tests.service.stub_detector import StubDetector, picture, serving
from tests.service.test_decode import png_header

JPEG = {"content-type": "image/jpeg"}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with serving(max_upload_bytes=100_000, max_pixels=1_000_000) as opened:
        yield opened


def assert_problem(response: Any, status: int, *words: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:asfd:problem:")
    assert problem["title"]
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    for word in words:
        assert word in problem["detail"], problem["detail"]
    return problem


GOOD = picture()
BODIES: dict[str, tuple[bytes, dict[str, str], int, tuple[str, ...]]] = {
    "no body": (b"", {}, 400, ("empty",)),
    "empty body": (b"", JPEG, 400, ("empty", "JPEG, PNG or WebP")),
    "truncated jpeg": (GOOD[: len(GOOD) // 2], JPEG, 400, ("whole file",)),
    "truncated header": (GOOD[:20], JPEG, 400, ("whole file",)),
    "only magic": (b"\xff\xd8\xff", JPEG, 400, ("damaged",)),
    "not a picture": (b"hello", JPEG, 400, ("not a picture",)),
    "random bytes": (bytes(range(7, 256)) * 8, JPEG, 400, ("not a picture",)),
    "gif by content": (picture("GIF"), JPEG, 415, ("GIF",)),
    "bmp by content": (picture("BMP"), {}, 415, ("BMP",)),
    "tiff by content": (picture("TIFF"), JPEG, 415, ("TIFF",)),
    "pdf by content": (b"%PDF-1.7", JPEG, 415, ("PDF",)),
    "heic by content": (b"\0\0\0\x18ftypheic", JPEG, 415, ("HEIC",)),
    "svg by content": (b"<svg/>", JPEG, 415, ("SVG",)),
    "gif declared": (picture("GIF"), {"content-type": "image/gif"}, 415, ("image/gif", "image/jpeg")),
    "text declared": (GOOD, {"content-type": "text/plain"}, 415, ("text/plain",)),
    "json declared": (b"{}", {"content-type": "application/json"}, 415, ("not a JSON document",)),
    "curl's default": (GOOD, {"content-type": "application/x-www-form-urlencoded"}, 415, ("-H 'Content-Type",)),
    "nonsense type": (GOOD, {"content-type": "no/such;;;\xff="}, 415, ("Content-Type",)),
    "compressed": (GOOD, {**JPEG, "content-encoding": "gzip"}, 415, ("Content-Encoding",)),
    "too many bytes": (GOOD + b"\0" * 100_000, JPEG, 413, ("100000 bytes",)),
    "too many pixels": (png_header(1001, 1000), JPEG, 413, ("1001 x 1000", "megapixels")),
    "decompression bomb": (png_header(2**31 - 1, 2**31 - 1), JPEG, 413, ("megapixels",)),
    "zero pixels": (png_header(0, 5), JPEG, 400, ("damaged",)),
    "multipart without boundary": (b"x", {"content-type": "multipart/form-data"}, 400, ("boundary",)),
    "multipart with huge boundary": (
        b"x",
        {"content-type": "multipart/form-data; boundary=" + "b" * 4000},
        400,
        ("boundary",),
    ),
    "multipart that is none": (b"hello", {"content-type": "multipart/form-data; boundary=b"}, 400, ("multipart",)),
    "multipart cut short": (
        b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n\xff\xd8',
        {"content-type": "multipart/form-data; boundary=b"},
        400,
        ("cut short",),
    ),
    "multipart of nothing": (b"--b--\r\n", {"content-type": "multipart/form-data; boundary=b"}, 422, ("'image'",)),
    "multipart empty body": (b"", {"content-type": "multipart/form-data; boundary=b"}, 422, ("'image'",)),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(client: TestClient, name: str) -> None:
    content, headers, status, words = BODIES[name]
    # latin-1, because a header may hold any byte
    raw = {key.encode(): value.encode("latin-1") for key, value in headers.items()}
    assert_problem(client.post("/detect", content=content, headers=raw), status, *words)


QUERIES: dict[str, tuple[str, ...]] = {
    "tier=nope": ("'nope'", "realtime", "accurate"),
    "tier=": ("There is no tier ''",),
    "tier=standard&latency_ms=100": ("exclude each other",),
    "tier=standard&tier=accurate": ("2 times",),
    "latency_ms=0": ("latency_ms", "greater than 0"),
    "latency_ms=-5": ("latency_ms", "greater than 0"),
    "latency_ms=nan": ("latency_ms", "finite"),
    "latency_ms=inf": ("latency_ms", "finite"),
    "latency_ms=1e300": ("latency_ms", "600000"),
    "latency_ms=fast": ("latency_ms", "number"),
    "latency_ms=": ("latency_ms",),
    "latency_ms=1_0": ("latency_ms: input should be a number without '_' (given: '1_0')",),
    "max_faces=1_0": ("max_faces", "'1_0'"),
    "min_score=0.1_0": ("min_score", "'0.1_0'"),
    "min_face=1_0": ("min_face", "'1_0'"),
    "variant=a&long_side=6_40": ("long_side", "'6_40'"),
    "on_infeasible=maybe": ("'degrade' or 'reject'",),
    "min_score=1.5": ("min_score", "less than or equal to 1"),
    "min_score=nan": ("min_score", "finite"),
    "min_score=-0.1": ("min_score",),
    "max_faces=0": ("max_faces",),
    "max_faces=2.5": ("max_faces", "integer"),
    "min_face=-1": ("min_face",),
    "return=gif": ("return", "'json' or 'image'"),
    "long_side=640": ("variant",),
    "teir=standard": ("'teir'", "Did you mean 'tier'?"),
    "x=1": ("'x'", "Known parameters: tier, latency_ms"),
    "variant=" + "v" * 500: ("variant", "64"),
    "%00=%ff": ("no query parameter",),
}


@pytest.mark.parametrize("query", QUERIES)
def test_parameters(client: TestClient, query: str) -> None:
    problem = assert_problem(client.post(f"/detect?{query}", content=GOOD, headers=JPEG), 422, *QUERIES[query])
    assert problem["parameter"]
    assert len(problem["detail"]) < 400


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "", "fast", "1e9", "1_0"])
def test_budget_header(client: TestClient, value: str) -> None:
    response = client.post("/detect", content=GOOD, headers={**JPEG, "X-Latency-Budget-Ms": value})
    assert assert_problem(response, 422, "X-Latency-Budget-Ms")["parameter"] == "X-Latency-Budget-Ms"


@pytest.mark.parametrize("path", ["/detect", "/detect/batch"])
def test_repeated_budget_header(client: TestClient, path: str) -> None:
    twice = [("content-type", "image/jpeg"), ("X-Latency-Budget-Ms", "250"), ("X-Latency-Budget-Ms", "900")]
    response = client.post(path, content=GOOD, headers=twice)
    problem = assert_problem(response, 422, "X-Latency-Budget-Ms is there 2 times; give it once.")
    assert problem["parameter"] == "X-Latency-Budget-Ms"
    # The query takes the place of the header, whatever that says.
    assert client.post("/detect?tier=accurate", content=GOOD, headers=twice).status_code == 200


def test_forms(client: TestClient) -> None:
    assert_problem(client.post("/detect", files={"photo": ("a.jpg", GOOD)}), 422, "'photo'", "'image'")
    assert_problem(client.post("/detect", files={"image": GOOD}, data={"tier": "fast"}), 422, "'tier'", "query")
    twice = [("image", ("a.jpg", GOOD)), ("image", ("b.jpg", GOOD))]
    assert_problem(client.post("/detect", files=twice), 422, "twice")
    assert_problem(client.post("/detect", files=[(f"f{i}", b"x") for i in range(40)]), 400, "more than 16 parts")
    assert_problem(client.post("/detect", files={"image": b""}), 400, "empty")
    assert_problem(client.post("/detect", files={"image": GOOD + b"\0" * 100_000}), 413, "100000 bytes")


def test_undeclared_length_is_counted_while_it_streams(client: TestClient) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 50_000_000:
            sent += 10_000
            yield b"\xff\xd8\xff" + b"\0" * 9_997

    assert_problem(client.post("/detect", content=endless(), headers=JPEG), 413, "at most 100000 bytes")


def test_other_paths_and_methods(client: TestClient) -> None:
    assert_problem(client.get("/nope"), 404, "POST /detect")
    assert_problem(client.get("/detect/"), 404)
    response = client.get("/detect")
    assert_problem(response, 405, "POST")
    assert response.headers["allow"] == "POST"
    assert_problem(client.delete("/tiers"), 405)
    assert_problem(client.get("/static/../../etc/passwd"), 404)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InfeasibleError(budget_ms=5, predicted_ms=41.2, smallest_feasible_ms=43.5), 503),
        (QueueFullError("64 requests wait already."), 503),
        (DeadlinePassedError("The budget of 5 ms ran out."), 504),
        (EngineFailureError("The detector failed on this picture."), 500),
    ],
)
def test_what_the_runtime_refuses(error: AsfdError, status: int) -> None:
    with serving(StubDetector(error=error)) as client:
        response = client.post("/detect", content=GOOD, headers=JPEG)
        problem = assert_problem(response, status)
        assert ("retry-after" in response.headers) == (status == 503)
        if isinstance(error, InfeasibleError):
            assert problem["predicted_ms"] == 41.2
            assert problem["smallest_feasible_ms"] == 44


def test_unexpected_failure_is_logged_with_its_request_id_and_told_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(StubDetector(error=ZeroDivisionError("secret detail"))) as client:
        response = client.post("/detect", content=GOOD, headers={**JPEG, "X-Request-ID": "find-me"})
        assert_problem(response, 500)
        assert "secret" not in response.text
        assert client.get("/health/live").status_code == 200
    failures = [record for record in caplog.records if record.exc_info]
    assert len(failures) == 1
    assert "find-me" in failures[0].getMessage()


def test_log_lines_cannot_be_forged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "asfd.request")
    with serving() as client:
        client.get("/a%0d%0aINFO%20forged")
    lines = [record.getMessage() for record in caplog.records if record.name == "asfd.request"]
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert json.loads(lines[0])["status"] == 404


def test_service_still_works_after_all_of_it(client: TestClient) -> None:
    assert client.post("/detect", content=GOOD, headers=JPEG).status_code == 200
