"""/metrics: names and labels by convention, attainment exact at tier budgets, label values bounded."""

from __future__ import annotations

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient

from service.api import detect
from service.api.context import RequestContext
from service.api.metrics import CLIENT_FAULTS, GONE_LATE, Metrics
from service.api.query import Budget
from service.errors import AsfdError, DeadlinePassedError, QueueFullError
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
            if name == "asfd_requests_total" and count
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


def ended(outcome: str, variant: str = "none", ap50: float | None = None, tier: str = "realtime") -> RequestContext:
    """A request as `detect` leaves it; ap50: of an answer in time."""
    in_time = ap50 is not None
    return RequestContext(0.0, "id", None, tier, variant, outcome, in_time=int(in_time), worth=ap50 or 0.0)


def test_effective_ap_is_the_mean_over_what_is_judged() -> None:
    """Of eight judged, three in time on variants of 0.8, 0.6 and one unmeasured: attainment 3/8, AP 1.4/8."""
    metrics = Metrics({"realtime": 150.0, "accurate": 3000.0})
    for context in (
        ended("ok", "d1", 0.8),
        ended("ok", "d0", 0.6),
        ended("ok", "new", 0.0),
        ended("late", "d1"),
        ended("queue_full"),
        ended("infeasible_budget"),
        ended("deadline_passed"),
        ended(GONE_LATE),
        ended("client_gone"),
        ended("bad_parameter"),
        ended("too_large"),
        ended("bad_parameter", tier="none"),
    ):
        metrics.request_done(context)
    found = samples(metrics.render("")[0].decode())

    def of(tier: str) -> list[float]:
        label = frozenset({("tier", tier)})
        return [found[f"asfd_{name}_total", label] for name in ("judged", "in_time", "effective_ap")]

    assert of("realtime") == pytest.approx([8, 3, 1.4])
    assert of("accurate") == of("custom") == [0, 0, 0]


def test_attainment_from_the_histogram_is_exact_on_the_edge() -> None:
    """Three at or below 150 ms, of which one exactly there, and two above by next to nothing and by far."""
    metrics = Metrics({"realtime": 150.0, "standard": 1000.0})
    for latency in (0.149999, 0.15, 0.02, 0.150001, 0.9):
        metrics.answered("realtime", latency, 0.15)
    metrics.answered("standard", 0.1, 1.0)
    found = samples(metrics.render("")[0].decode())

    def at_most(le: str) -> float:
        return found["asfd_request_latency_seconds_bucket", frozenset({("tier", "realtime"), ("le", le)})]

    assert [at_most(le) for le in ("0.1", "0.15", "0.25", "1.0", "+Inf")] == [1, 3, 4, 5, 5]
    assert found["asfd_deadline_slack_seconds_bucket", frozenset({("le", "-0.5")})] == 1
    assert found["asfd_deadline_slack_seconds_count", frozenset()] == 6


def all_errors(base: type[AsfdError] = AsfdError) -> list[type[AsfdError]]:
    return [base, *(error for child in base.__subclasses__() for error in all_errors(child))]


def test_faults_of_the_client_are_the_errors_of_4xx_and_no_others() -> None:
    slugs = {error.type_slug.replace("-", "_"): error.status for error in all_errors()}
    faults = {slug for slug, status in slugs.items() if 400 <= status < 500}
    assert faults | {"cancelled", "client_gone"} == CLIENT_FAULTS


@pytest.mark.parametrize(
    ("gone", "budget_ms", "outcome"),
    [
        (detect.ClientGoneError(), 60_000.0, "client_gone"),
        (detect.ClientGoneError(), 900.0, GONE_LATE),
        (ClientDisconnect(), 900.0, "client_gone"),  # a slow upload is the client's own
    ],
)
def test_who_leaves_after_the_budget_was_waiting_in_vain(
    gone: detect.ClientGoneError | ClientDisconnect, budget_ms: float, outcome: str
) -> None:
    context = RequestContext(time.monotonic() - 1.0, "id", None)
    assert detect.client_left(context, gone, Budget(budget_ms, None)).status_code == 499
    assert context.outcome == outcome


def test_an_answer_that_cannot_be_drawn_was_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise RuntimeError("no ink")

    monkeypatch.setattr(detect, "annotated", broken)
    with serving() as client:
        assert client.post("/detect?return=image", content=picture(), headers=JPEG).status_code == 500
        counts = [
            value(client, f"asfd_{name}_total", tier="standard") for name in ("judged", "in_time", "effective_ap")
        ]
        assert counts == [1, 0, 0]
        assert value(client, "asfd_request_latency_seconds_count", tier="standard") == 0
        assert value(client, "asfd_requests_total", tier="standard", variant="stub", outcome="internal_error") == 1


def test_no_request_adds_a_label_of_its_own() -> None:
    """Whatever clients send, the number of series stays below what tiers, variants, outcomes and reasons allow."""
    stub = StubDetector()
    with serving(stub) as client:

        def series(turn: int) -> set[str]:
            stub.error = None
            for query in (
                f"tier=t{turn}",
                f"latency_ms={100 + turn}",
                f"variant=v{turn}",
                f"x{turn}=1",
                f"min_score={turn}",
            ):
                client.post(f"/detect?{query}", content=picture(), headers=JPEG)
            client.post("/detect", content=picture(), headers={**JPEG, "X-Latency-Budget-Ms": str(1000 + turn)})
            client.post("/detect", content=picture(), headers={"content-type": f"image/x{turn}"})
            client.post("/detect", content=picture(), headers={**JPEG, "X-Request-Id": f"r{turn}"})
            client.request(f"M{turn}", "/detect")
            client.get(f"/detect/{turn}")
            stub.error = QueueFullError(f"full {turn}")
            client.post("/detect", content=picture(), headers=JPEG)
            return {line.rpartition(" ")[0] for line in client.get("/metrics").text.splitlines() if line[0] != "#"}

        first = series(2)
        assert series(3) == series(4) == first


def test_what_alerts_watch_is_there_before_it_happens() -> None:
    found = samples(Metrics({"realtime": 150.0}).render("")[0].decode())
    for tier in ("realtime", "custom"):
        for name in ("judged_total", "in_time_total", "effective_ap_total", "request_latency_seconds_count"):
            assert found[f"asfd_{name}", frozenset({("tier", tier)})] == 0
        for outcome in ("engine_failure", "internal_error"):
            labels = {("tier", tier), ("variant", "none"), ("outcome", outcome)}
            assert found["asfd_requests_total", frozenset(labels)] == 0
    reasons = {dict(labels)["reason"] for name, labels in found if name == "asfd_shed_total"}
    assert reasons == {"queue_full", "infeasible", "overload", "expired"}


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
    metrics.dispatch("on_time", 4)
    metrics.shed("expired")
    metrics.predicted_vs_actual(1.2, "d0")
    metrics.queue_wait(0.002)
    metrics.faces(3)
    metrics.watch(queue_length=lambda: 7, in_flight=lambda: 2, ready=lambda: True)
    found = samples(metrics.render("")[0].decode())
    expected: dict[tuple[str, frozenset[tuple[str, str]]], float] = {
        ("asfd_stage_seconds_count", frozenset({("stage", "decode")})): 1,
        ("asfd_dispatch_total", frozenset({("reason", "on_time")})): 1,
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


def test_a_refused_batch_misses_with_each_of_its_pictures() -> None:
    with serving(StubDetector(refuse_all=QueueFullError("full"))) as client:
        parts = [("image", (f"{k}.jpg", data, "image/jpeg")) for k, data in enumerate((picture(), b"", picture()))]
        assert client.post("/detect/batch?tier=accurate", files=parts).status_code == 503
        names = ("judged", "in_time", "effective_ap")
        assert [value(client, f"asfd_{name}_total", tier="accurate") for name in names] == [2, 0, 0]
