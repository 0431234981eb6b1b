"""/metrics: names and labels by convention, attainment exact at tier budgets, label values bounded."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service.api.metrics import Metrics
from service.errors import DeadlinePassedError, QueueFullError
from tests.service.stub_detector import StubDetector, picture, serving

JPEG = {"content-type": "image/jpeg"}


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(client: TestClient, name: str, **labels: str) -> float:
    return samples(client.get("/metrics").text).get((name, frozenset(labels.items())), 0.0)


def test_requests_are_counted_by_tier_variant_and_outcome() -> None:
    stub = StubDetector()
    with serving(stub) as client:
        for query in ("", "?tier=realtime", "?latency_ms=123.4", "?latency_ms=567.8", "?tier=no-such-tier"):
            client.post(f"/detect{query}", content=picture(), headers=JPEG)
        stub.error = QueueFullError("full")
        client.post("/detect", content=picture(), headers=JPEG)
        client.post("/detect", content=b"x", headers=JPEG)
        client.get("/tiers")
        counted = {
            tuple(dict(labels)[key] for key in ("tier", "variant", "outcome")): count
            for (name, labels), count in samples(client.get("/metrics").text).items()
            if name == "asfd_requests_total"
        }
    assert counted == {
        ("standard", "stub", "ok"): 1,
        ("realtime", "stub", "ok"): 1,
        ("custom", "stub", "ok"): 2,
        ("none", "none", "bad_parameter"): 1,
        ("standard", "none", "queue_full"): 1,
        ("standard", "none", "undecodable_image"): 1,
    }


def test_late_answers_count_as_late_and_have_negative_slack() -> None:
    with serving(StubDetector(delay=0.03)) as client:
        client.post("/detect?latency_ms=5", content=picture(), headers=JPEG)
        assert value(client, "asfd_requests_total", tier="custom", variant="stub", outcome="late") == 1
        assert value(client, "asfd_deadline_slack_seconds_bucket", le="0.0") == 1


def test_attainment_and_effective_ap_of_a_sequence_worked_out_by_hand() -> None:
    """Two in time at AP.50 0.5; one late, one refused and one expired count as none; three are the clients' affair."""
    stub = StubDetector()
    with serving(stub) as client:
        for _ in range(2):
            client.post("/detect?tier=realtime", content=picture(), headers=JPEG)
        stub.delay = 0.2
        client.post("/detect?tier=realtime", content=picture(), headers=JPEG)
        stub.delay = 0.0
        for error in (QueueFullError("full"), DeadlinePassedError("over")):
            stub.error = error
            client.post("/detect?tier=realtime", content=picture(), headers=JPEG)
        stub.error = None
        client.post("/detect?tier=realtime", content=b"no picture", headers=JPEG)
        client.post("/detect?tier=realtime&min_score=7", content=picture(), headers=JPEG)
        client.post("/detect?tier=realtime", content=picture(), headers={"content-type": "text/plain"})
        judged, in_time, worth = (
            value(client, f"asfd_{name}_total", tier="realtime") for name in ("judged", "in_time", "effective_ap")
        )
        exact = value(client, "asfd_request_latency_seconds_bucket", tier="realtime", le="0.15")
    assert (judged, in_time, worth) == (5, 2, 1.0)
    assert (in_time / judged, worth / judged) == (0.4, 0.2)
    assert exact == in_time


def test_every_picture_of_a_batch_is_judged_but_those_that_cannot_be_read() -> None:
    with serving() as client:
        parts = [("image", (f"{k}.jpg", data, "image/jpeg")) for k, data in enumerate((picture(), b"", picture()))]
        client.post("/detect/batch?tier=accurate", files=parts)
        names = ("judged", "in_time", "effective_ap")
        assert [value(client, f"asfd_{name}_total", tier="accurate") for name in names] == [2, 2, 1.0]


def test_every_tier_budget_is_a_bucket_edge() -> None:
    tiers = {"odd": 137.0, "other": 1234.5}
    with serving(tiers=tiers, default_tier="odd") as client:
        client.post("/detect?tier=odd", content=picture(), headers=JPEG)
        text = client.get("/metrics").text
    edges = {
        float(dict(labels)["le"]) for (name, labels) in samples(text) if name == "asfd_request_latency_seconds_bucket"
    }
    assert {budget / 1e3 for budget in tiers.values()} <= edges


def test_observer_series() -> None:
    metrics = Metrics({"standard": 1000.0})
    metrics.stage("decode", 0.01)
    metrics.dispatch("deadline", 4)
    metrics.shed("expired")
    metrics.predicted_vs_actual(1.2, "d0")
    metrics.queue_wait(0.002)
    metrics.faces(3)
    metrics.watch(queue_length=lambda: 7, in_flight=lambda: 2, ready=lambda: True)
    found = samples(metrics.render("")[0].decode())
    expected: dict[tuple[str, frozenset[tuple[str, str]]], float] = {
        ("asfd_stage_seconds_count", frozenset({("stage", "decode")})): 1,
        ("asfd_dispatch_total", frozenset({("reason", "deadline")})): 1,
        ("asfd_batch_size_sum", frozenset()): 4,
        ("asfd_shed_total", frozenset({("reason", "expired")})): 1,
        ("asfd_predicted_vs_actual_ratio_count", frozenset({("variant", "d0")})): 1,
        ("asfd_queue_wait_seconds_sum", frozenset()): 0.002,
        ("asfd_faces_per_image_sum", frozenset()): 3,
        ("asfd_queue_length", frozenset()): 7,
        ("asfd_in_flight_requests", frozenset()): 2,
        ("asfd_ready", frozenset()): 1,
    }
    assert {key: found[key] for key in expected} == expected


def test_process_and_build_are_shown() -> None:
    with serving() as client:
        assert value(client, "process_resident_memory_bytes") > 10e6
        assert value(client, "asfd_ready") == 1
        assert "asfd_build_info{" in client.get("/metrics").text


def test_scraper_gets_the_form_it_asks_for() -> None:
    with serving() as client:
        assert client.get("/metrics").headers["content-type"].startswith("text/plain")
        openmetrics = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
        assert openmetrics.text.endswith("# EOF\n")
