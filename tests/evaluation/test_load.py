"""The load benchmark: an open loop that is one, results counted by hand, and a benchmark that goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from benchmarks.load import client as load_client
from benchmarks.load import run as load_run
from benchmarks.load.__main__ import main
from benchmarks.load.capacity import Timed, fastest, service_profile, sim_profile
from benchmarks.load.client import BROKEN, NOT_SENT, TIMED_OUT, Client, Reply, Shot, one_by_one, play, saturate
from benchmarks.load.outcome import judge
from benchmarks.load.report import Row
from benchmarks.load.run import Plan, run
from benchmarks.load.workload import DRAWN_SIZES, drawn_photos, fingerprint, make_trace, read_photos, shots
from benchmarks.server import free_port
from service.profiling import DecodeCost, Profile, Timing
from tests.service.fake_model import write_fake_repository

HUGE = 1e6


def answer(ap50: float | None = 0.5, variant: str = "d0", side: int = 320, batch: int = 1) -> bytes:
    """What the client reads of an answer of the service."""
    model = {"variant": variant, "input": {"height": side * 3 // 4, "width": side}, "ap50": ap50, "batch": batch}
    return json.dumps({"faces": [], "model": model}).encode()


def shot(target: str = "/200", at_s: float = 0.0, budget_ms: float = HUGE, tier: str = "") -> Shot:
    return Shot(at_s, target, b"12345", "image/jpeg", budget_ms, tier)


class Stub:
    """A server that answers `/STATUS`, and counts. /gate answers once `gate` requests are inside; /never does not;
    /cut breaks off; /bye closes the connection after its answer."""

    def __init__(self, gate: int = 0) -> None:
        self.gate, self.inside, self.connections = gate, 0, 0
        self.opened = asyncio.Event()
        self.heads: list[str] = []
        self.bodies: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                target = head.split(" ")[1]
                length = next(line for line in head.split("\r\n") if line.startswith("Content-Length: "))
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(int(length.partition(": ")[2])))
                if target == "/never":
                    await asyncio.sleep(60)
                if target == "/gate":
                    self.inside += 1
                    if self.inside == self.gate:
                        self.opened.set()
                    await self.opened.wait()
                if target == "/cut":
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf")
                    return
                status = target[1:] if target[1:].isdecimal() else "200"
                body = answer() if status == "200" else b"{}"
                close = "Connection: close\r\n" if target == "/bye" else ""
                writer.write(
                    f"HTTP/1.1 {status} Words\r\nServer-Timing: decode;dur=1.50, queue;dur=0.25\r\n{close}"
                    f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                if close:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def against(stub: Stub, act: Callable[[int], Awaitable[Any]]) -> Any:
    """What `act` returns, given the port of the running stub."""

    async def main() -> Any:
        server = await asyncio.start_server(stub, "127.0.0.1", 0)
        try:
            return await act(server.sockets[0].getsockname()[1])
        finally:
            server.close()

    return asyncio.run(main())


def test_the_loop_is_open_a_slow_server_does_not_delay_the_next_request() -> None:
    # No answer before all five are inside: a client that waited for any of them would never send the last.
    stub = Stub(gate=5)
    replies = against(stub, lambda port: play(port, [shot("/gate", k / 1000) for k in range(5)], extra_s=30.0))
    assert [reply.status for reply in replies] == [200] * 5
    assert stub.connections == 5


def test_every_end_has_its_status_and_they_come_in_the_order_of_the_trace() -> None:
    targets = ["/200", "/503", "/504", "/500", "/cut", "/200"]
    requests = [shot(target, k / 200) for k, target in enumerate(targets)] + [shot("/never", 0.03, budget_ms=100.0)]
    told: list[int] = []
    replies = against(Stub(), lambda port: play(port, requests, extra_s=0.5, told=lambda: told.append(1)))
    assert [reply.status for reply in replies] == [200, 503, 504, 500, BROKEN, 200, TIMED_OUT]
    assert len(told) == 7
    assert replies[0].stages() == {"decode": 1.5, "queue": 0.25}
    assert all(reply.latency_ms > 0 and reply.lag_ms >= -1 for reply in replies)
    played = judge(requests, replies)
    assert (played.on_time, played.late, played.dropped, played.failed) == (2, 0, 2, 3)
    assert played.statuses["503"] == played.statuses["504"] == 1


def test_a_server_that_is_not_there_is_a_failure_and_no_exception() -> None:
    assert [reply.status for reply in asyncio.run(play(free_port(), [shot()]))] == [BROKEN]


def test_requests_are_what_the_service_reads_and_connections_are_kept() -> None:
    stub = Stub()
    replies = against(stub, lambda port: one_by_one(port, [shot("/200?tier=fast"), shot(), shot("/bye"), shot()]))
    assert [reply.status for reply in replies] == [200] * 4
    assert stub.connections == 2  # the third answer closed the first one
    assert stub.bodies == [b"12345"] * 4
    assert stub.heads[0].startswith("POST /200?tier=fast HTTP/1.1\r\nHost: 127.0.0.1:")
    assert "\r\nContent-Type: image/jpeg\r\n" in stub.heads[0]


def test_what_is_in_flight_is_bounded() -> None:
    async def one(port: int) -> Reply:
        client = Client(port)
        client.in_flight = load_client.MOST_IN_FLIGHT
        return await client.post(shot(), 5.0)

    stub = Stub()
    assert against(stub, one).status == NOT_SENT
    assert not stub.heads


def test_saturation_counts_answers_and_refuses_errors() -> None:
    stub = Stub()
    requests = [shot("/one"), shot("/two")]
    assert against(stub, lambda port: saturate(port, requests, 0.2, clients=3, warm_up_s=0.05)) > 0
    assert stub.connections == 3
    assert {head.split(" ")[1] for head in stub.heads} == {"/one", "/two"}
    with pytest.raises(RuntimeError, match="/500 answered 500"):
        against(Stub(), lambda port: saturate(port, [shot("/500")], 0.2, clients=1))


def test_attainment_and_effective_ap_by_hand() -> None:
    requests = [
        shot(at_s=1.0, budget_ms=100, tier="fast"),
        shot(at_s=2.0, budget_ms=100, tier="fast"),
        shot(at_s=3.0, budget_ms=900, tier="slow"),
        shot(at_s=5.0, budget_ms=900, tier="slow"),
        shot(at_s=5.5, budget_ms=900, tier="slow"),
    ]
    replies = [
        Reply(200, 100.0, 0.0, body=answer(0.6, "d0", 320)),  # at its deadline: on time
        Reply(200, 100.1, 0.0, body=answer(0.6, "d0", 320)),  # late, whatever the service thinks
        Reply(200, 500.0, 0.0, body=answer(0.8, "d1", 640, batch=2)),
        Reply(200, 890.0, 110.0, body=answer(None, "d2", 640, batch=2)),  # on time, of unknown accuracy
        Reply(503, 3.0),
    ]
    played = judge(requests, replies)
    assert (played.requests, played.on_time, played.late, played.dropped, played.failed) == (5, 3, 1, 1, 0)
    assert played.attainment == pytest.approx(3 / 5)
    assert played.effective_ap == pytest.approx((0.6 + 0.8) / 5)
    assert played.answered_ap == pytest.approx((0.6 + 0.6 + 0.8) / 4)
    assert played.goodput_per_s == pytest.approx(3 / 5.0)  # 1.0 s to 5.0 + 0.11 + 0.89 s
    assert played.mean_batch == pytest.approx(4 / 3, abs=1e-5)  # two alone, two together
    assert played.arms == {"d0@320": 2, "d1@640": 1, "d2@640": 1}
    assert {name: (t.requests, t.attainment) for name, t in played.tiers.items()} == {
        "fast": (2, 0.5),
        "slow": (3, 0.66667),
    }
    assert played.tiers["slow"].effective_ap == pytest.approx(0.8 / 3, abs=1e-5)
    assert played.p50_ms == pytest.approx((100.1 + 500) / 2)
    assert played.refused_p99_ms == pytest.approx(3.0)
    nothing = judge(requests[:1], [Reply(503, 1.0)])
    assert (nothing.attainment, nothing.effective_ap, nothing.goodput_per_s, nothing.p50_ms) == (0, 0, 0, None)
    with pytest.raises(ValueError, match="4 replies to 5 requests"):
        judge(requests, replies[:4])


def test_photos_keep_their_bytes_and_traces_carry_their_sizes(tmp_path: Path) -> None:
    folder = tmp_path / "dev" / "images" / "a"
    folder.mkdir(parents=True)
    for name, size in (("one.jpg", (40, 30)), ("two.png", (30, 50)), ("three.webp", (64, 64))):
        Image.new("RGB", size).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    photos = read_photos(tmp_path, 10, seed=3)
    assert {p.name: (p.content_type, p.width, p.height) for p in photos} == {
        "dev/images/a/one.jpg": ("image/jpeg", 40, 30),
        "dev/images/a/two.png": ("image/png", 30, 50),
        "dev/images/a/three.webp": ("image/webp", 64, 64),
    }
    assert all(p.data == (tmp_path / p.name).read_bytes() for p in photos)
    assert len(read_photos(tmp_path, 2, seed=3)) == 2
    trace = make_trace("gamma4", 20.0, 10.0, "realtime:1+standard:3", 0.5, photos, seed=1)
    assert trace == make_trace("gamma4", 20.0, 10.0, "realtime:1+standard:3", 0.5, photos, seed=1)
    for arrival, k in zip(trace.arrivals, trace.photos, strict=True):
        assert (arrival.width, arrival.height) == (photos[k].width, photos[k].height)
    # The service knows one of the two tiers under the trace's budget: the other is asked for in milliseconds.
    requests = shots(trace, photos, {"realtime": 150.0, "standard": 999.0})
    assert {(r.target, r.tier) for r in requests} == {
        (f"/detect?{budget}&on_infeasible={late}", tier)
        for budget, tier in (("tier=realtime", "realtime"), ("latency_ms=1000", "standard"))
        for late in ("degrade", "reject")
    }
    (folder / "one.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"one\.jpg is no picture"):
        read_photos(tmp_path, 10, seed=3)
    with pytest.raises(FileNotFoundError, match="no pictures in"):
        read_photos(tmp_path / "nowhere", 10, seed=3)
    with pytest.raises(ValueError, match="no trace 'gamma'"):
        make_trace("gamma", 20.0, 10.0, "standard", 0.0, photos, seed=1)


def test_pictures_are_drawn_where_there_are_none() -> None:
    photos = drawn_photos()
    assert {(p.width, p.height) for p in photos} == set(DRAWN_SIZES)
    assert fingerprint(photos) == fingerprint(drawn_photos()) != fingerprint(photos[1:])


def timed(variant: str, height: int, width: int, batch: int, p50: float) -> Timed:
    return Timed(variant=variant, height=height, width=width, batch=batch, p50_ms=p50, p99_ms=p50 * 2, runs=3, ap50=0.5)


def test_profiles_of_the_service_become_the_simulators(tmp_path: Path) -> None:
    timing = Timing(variant="a", height=64, width=96, batch=2, p50_ms=3.0, p99_ms=4.0, runs=5)
    decode = DecodeCost(jpeg=dict.fromkeys((1, 2, 4, 8), 1.0), png=1.0, webp=1.0)
    kept = Profile(key="k", timings=(timing,), decode=decode)
    (tmp_path / "profile-k.json").write_text(kept.model_dump_json())
    models = {"variants": [{"variant": "a", "inputs": [{"height": 64, "width": 96, "ap50": 0.7}]}]}
    (row,) = service_profile(tmp_path, models)
    assert (row.variant, row.batch, row.p50_ms, row.ap50) == ("a", 2, 3.0, 0.7)
    with pytest.raises(FileNotFoundError, match="left no profile"):
        service_profile(tmp_path / "none", models)

    rows = [
        timed("a", 64, 64, 1, 10),
        timed("a", 64, 64, 2, 12),
        timed("b", 64, 64, 1, 8),
        timed("b", 128, 128, 1, 7.9),
    ]
    assert fastest(rows) == ("a", 64)  # 6 ms a picture in a batch of two
    profile = sim_profile(rows, slower=2.0)
    assert [arm.max_batch for arm in profile.arms] == [2, 1, 1]  # each as far as it was measured
    assert profile.p50_ms[0] == (20.0, 24.0)
    assert profile.arms[0].latency_ms == (40.0, 48.0)


@pytest.mark.slow
def test_a_service_is_measured_and_only_what_is_missing_is_played_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = drawn_photos()[:3]

    def plan(*policies: str) -> Plan:
        return Plan(
            repository=tmp_path / "models", policies=policies, loads=(0.2,), traces=("poisson",), seconds=1.0,
            mix="accurate:1", late_ok=1.0, seed=0, threads=1, data="drawn", cache=tmp_path / "cache",
            out=tmp_path / "load.json", command="a test", saturation_s=0.2, overhead_requests=5,
        )  # fmt: skip

    write_fake_repository(tmp_path / "models")
    first = run(plan("roll_out"), photos)
    (only,) = first.results
    assert first.capacity is not None
    assert first.overhead is not None
    assert only.rate == pytest.approx(0.2 * first.capacity.service_per_s, rel=1e-3)
    assert only.requests == sum(only.statuses.values()) > 0
    assert only.failed == 0
    assert [s.long_side for s in first.saturation] == [64, 128]
    assert only.memory_mib.most >= only.memory_mib.before > 10

    played: list[str] = []
    real = load_run._play_one

    def watched(*arguments: Any) -> Row:
        played.append(arguments[7])
        return real(*arguments)

    monkeypatch.setattr(load_run, "_play_one", watched)
    monkeypatch.setattr(load_run, "_measure_machine", lambda *_: pytest.fail("the machine was measured already"))
    second = run(plan("roll_out", "fixed"), photos)
    assert played == ["fixed"]
    assert [r.policy for r in second.results] == ["roll_out", "fixed"]
    assert second.results[0] == only
    assert second.capacity == first.capacity
    assert second.results[1].spec == only.spec  # the same trace for both


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policies", "best"], "there is no 'best'"),
        (["--loads", "0.5,much"], "fractions of the capacity"),
        (["--traces", "uniform"], "there is no trace 'uniform'"),
        (["--mix", "urgent:1"], "mix has no tier 'urgent'"),
        (["--data", "nowhere"], "no pictures in nowhere"),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments: list[str], message: str) -> None:
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.output
