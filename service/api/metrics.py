"""Prometheus metrics of one app, in a registry of its own. Names: base units, `asfd_` in front, `_total` for counters.

Attainment is `asfd_in_time_total / asfd_judged_total` and effective AP `asfd_effective_ap_total / asfd_judged_total`,
by `rate` or `increase` over any window and any number of replicas. All three count pictures. One that was refused,
late, expired or failed counts as none, and so does one whose client left after its budget had run out; what was the
client's own fault does not count at all. Bucket edges of the latency histogram include every tier's budget, so that
what was answered in time is exact there too: `asfd_request_latency_seconds_bucket{tier="standard", le="1.0"}`. Budgets
of the client's own (tier `custom`) have no edge; for these there are the counters.

Labels are bounded: tiers and variants by the configuration, outcomes, reasons and stages by the code.
"""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

import service
from service.api.context import RequestContext
from service.settings import CUSTOM_TIER

_LATENCY_EDGES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGE_EDGES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_SLACK_EDGES = (-5.0, -1.0, -0.5, -0.1, -0.05, -0.01, 0.0, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_RATIO_EDGES = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)
_DECISION_EDGES = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2)
_BATCH_EDGES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 32, 64)
_COUNT_EDGES = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 750)

# Prometheus sees no increase where a series appears with its first event, so these are there from the start.
_DISPATCH_REASONS = ("on_time", "degraded")
_SHED_REASONS = ("queue_full", "infeasible", "overload", "expired")
_FAILURES = ("engine_failure", "engine_lost", "internal_error")

GONE_LATE = "gone_late"
"""Outcome of a request whose client left after its budget had run out: a miss, unlike `client_gone`."""

CLIENT_FAULTS = frozenset(
    (
        "undecodable_image", "malformed_request", "slow_body", "too_large", "unsupported_type", "bad_parameter",
        "not_found", "method_not_allowed", "cancelled", "client_gone",
    )
)  # fmt: skip
"""Outcomes that say nothing about whether the service keeps its promise."""


class Metrics:
    """Also the runtime's observer, as `service.observer` declares it. tiers: budgets in milliseconds."""

    def __init__(self, tiers: Mapping[str, float]) -> None:
        self.registry = registry = CollectorRegistry()
        # What is observed on the way of a request waits until its answer is sent: a dozen histograms take time.
        self._noted: deque[Callable[[], None]] = deque()
        edges = sorted({*_LATENCY_EDGES, *(budget / 1e3 for budget in tiers.values())})
        self._requests = Counter(
            "asfd_requests", "Requests to /detect and /detect/batch.", ("tier", "variant", "outcome"), registry=registry
        )
        self._judged = Counter(
            "asfd_judged",
            "Pictures that the service is answerable for: without clients' own faults and departures.",
            ("tier",),
            registry=registry,
        )
        self._in_time = Counter(
            "asfd_in_time", "Judged pictures that were answered within their budget.", ("tier",), registry=registry
        )
        self._worth = Counter(
            "asfd_effective_ap",
            "Sum over judged pictures of the AP.50 (0 to 1) of the variant at its input size; late, refused, expired "
            "and failed ones add 0. Its rate over that of asfd_judged_total is the effective AP of any window.",
            ("tier",),
            registry=registry,
        )
        self._latency = Histogram(
            "asfd_request_latency_seconds",
            "First byte to answer, of pictures that got their faces. Every tier's budget is a bucket edge.",
            ("tier",),
            buckets=edges,
            registry=registry,
        )
        self._slack = Histogram(
            "asfd_deadline_slack_seconds",
            "Budget minus latency of answered pictures; negative means late.",
            buckets=_SLACK_EDGES,
            registry=registry,
        )
        self._queue_wait = Histogram(
            "asfd_queue_wait_seconds",
            "From decoded to the start of the engine run, of answered pictures.",
            buckets=_STAGE_EDGES,
            registry=registry,
        )
        self._stages = Histogram(
            "asfd_stage_seconds", "Time by stage of a request.", ("stage",), buckets=_STAGE_EDGES, registry=registry
        )
        self._batch = Histogram("asfd_batch_size", "Pictures an engine run.", buckets=_BATCH_EDGES, registry=registry)
        self._dispatches = Counter(
            "asfd_dispatch", "Engine runs; degraded: predicted to be late.", ("reason",), registry=registry
        )
        self._sheds = Counter("asfd_shed", "Pictures given up by reason.", ("reason",), registry=registry)
        self._decisions = Histogram(
            "asfd_decision_seconds", "Time that the policy took to decide.", buckets=_DECISION_EDGES, registry=registry
        )
        self._ratio = Histogram(
            "asfd_predicted_vs_actual_ratio",
            "Predicted over measured time of an engine run; above 1 means predicted too long.",
            ("variant",),
            buckets=_RATIO_EDGES,
            registry=registry,
        )
        self._faces = Histogram(
            "asfd_faces_per_image", "Faces found in a picture.", buckets=_COUNT_EDGES, registry=registry
        )
        self._queue_length = Gauge("asfd_queue_length", "Pictures that wait for the engine.", registry=registry)
        self._in_flight = Gauge("asfd_in_flight_requests", "Requests being answered.", registry=registry)
        self._ready = Gauge("asfd_ready", "1 when models are loaded, profiled and warm.", registry=registry)
        self._engine_info = Gauge(
            "asfd_engine_info", "Which engine runs a variant, as labels.", ("variant", "engine"), registry=registry
        )
        self._engine_fallbacks = Counter(
            "asfd_engine_fallback",
            "Steps down from an engine that could not be had, at start; one each for a member.",
            ("from", "to", "reason"),
            registry=registry,
        )
        Gauge("asfd_build_info", "Versions, as labels.", ("version", "python"), registry=registry).labels(
            service.__version__, platform.python_version()
        ).set(1)
        ProcessCollector(registry=registry)  # CPU, resident memory, open files
        self._start_at_zero((*tiers, CUSTOM_TIER))

    def _start_at_zero(self, tiers: Iterable[str]) -> None:
        for tier in tiers:
            for family in (self._judged, self._in_time, self._worth, self._latency):
                family.labels(tier)
            for outcome in _FAILURES:
                self._requests.labels(tier, "none", outcome)
        for reason in _DISPATCH_REASONS:
            self._dispatches.labels(reason)
        for reason in _SHED_REASONS:
            self._sheds.labels(reason)

    def watch(
        self, *, queue_length: Callable[[], float], in_flight: Callable[[], float], ready: Callable[[], float]
    ) -> None:
        """Gauges that are read when Prometheus asks."""
        self._queue_length.set_function(queue_length)
        self._in_flight.set_function(in_flight)
        self._ready.set_function(ready)

    def request_done(self, context: RequestContext) -> None:
        """Count a request, and judge its pictures, once its answer was sent or it ended otherwise."""
        self._settle()
        self._requests.labels(context.tier, context.variant, context.outcome or "unknown").inc()
        if context.tier != "none" and context.outcome not in CLIENT_FAULTS:
            self._judged.labels(context.tier).inc(context.pictures)
            self._in_time.labels(context.tier).inc(context.in_time)
            self._worth.labels(context.tier).inc(context.worth)

    def _settle(self) -> None:
        """Do what was noted while somebody waited for an answer."""
        while self._noted:
            self._noted.popleft()()

    def answered(self, tier: str, latency_seconds: float, budget_seconds: float) -> None:
        """A picture has its faces, in time or late."""
        self._noted.append(lambda: self._latency.labels(tier).observe(latency_seconds))
        self._noted.append(lambda: self._slack.observe(budget_seconds - latency_seconds))

    def stage(self, name: str, seconds: float) -> None:
        self._noted.append(lambda: self._stages.labels(name).observe(seconds))

    def dispatch(self, reason: str, batch_size: int) -> None:
        self._noted.append(lambda: self._dispatches.labels(reason).inc())
        self._noted.append(lambda: self._batch.observe(batch_size))

    def shed(self, reason: str) -> None:
        self._noted.append(lambda: self._sheds.labels(reason).inc())

    def predicted_vs_actual(self, ratio: float, variant: str) -> None:
        self._noted.append(lambda: self._ratio.labels(variant).observe(ratio))

    def queue_wait(self, seconds: float) -> None:
        self._noted.append(lambda: self._queue_wait.observe(seconds))

    def decision(self, seconds: float) -> None:
        self._noted.append(lambda: self._decisions.observe(seconds))

    def faces(self, count: int) -> None:
        self._noted.append(lambda: self._faces.observe(count))

    def engine_chosen(self, variant: str, engine: str) -> None:
        self._engine_info.labels(variant, engine).set(1)

    def engine_fallback(self, start: str, to: str, reason: str) -> None:
        self._engine_fallbacks.labels(start, to, reason).inc()

    def render(self, accept: str) -> tuple[bytes, str]:
        """Text and its content type, in the form that the scraper prefers."""
        self._settle()
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type
