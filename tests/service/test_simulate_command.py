"""`python -m service simulate`: its files, its sentences, and the service's own policies on a made profile."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from service.cli import app
from service.scheduling.policies import POLICIES, make_policy
from service.scheduling.problem import Arm, Decision, Expected, Waiting
from service.simulation.profile import read_profile
from service.simulation.results import summarise
from service.simulation.simulate import Setting, simulate
from service.simulation.trace import load_trace, tier_budgets
from tests.service.made_profile import row, seven_rows, write_profile


class Least:
    """Runs the head of the queue on its first arm."""

    name = "least"

    def decide(self, now: float, queue: Sequence[Waiting], arms: Sequence[Arm], expected: Expected) -> Decision:
        head = queue[0]
        return Decision((head.number,), (head.arms & -head.arms).bit_length() - 1, (), "on_time")


class Wrong(Least):
    name = "wrong"

    def decide(self, now: float, queue: Sequence[Waiting], arms: Sequence[Arm], expected: Expected) -> Decision:
        return Decision((-1,), 0, (), "on_time")


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two arms of constant times, 10 and 40 ms; the command knows the policies `least` and `wrong` alone."""
    known = {"least": Least, "wrong": Wrong}
    stub = SimpleNamespace(POLICIES=known, make_policy=lambda name, _tiers: known[name]())
    monkeypatch.setitem(sys.modules, "service.scheduling.policies", stub)
    rows = [row("a", 480, 640, 1, 10.0, 10.0, 0.6), row("b", 480, 640, 1, 40.0, 40.0, 0.8)]
    return write_profile(tmp_path / "profile.json", rows)


def run(profile: Path, trace: object, out: Path, *arguments: object) -> Result:
    fixed = ["--profile", profile, "--trace", trace, "--out", out, "--policy", "least", *arguments]
    return CliRunner().invoke(app, ["simulate", *map(str, fixed)])


def recorded(folder: Path) -> Path:
    path = folder / "recorded.csv"
    path.write_text("arrival_s,budget_ms,tier\n0,100,fast\n0.001,24,fast\n0.002,24,\n5,100,slow\n")
    return path


def test_the_files_say_what_happened(profile: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    done = run(profile, recorded(tmp_path), out, "--decode-ms", 0, "--decision-ms", 1, "--no-admission")
    assert done.exit_code == 0, done.output
    # Earliest deadline first; each takes 11 ms: 0 ends at 11, 1 (due at 25) at 22, 2 (due at 26) at 33, 3 on time.
    report = json.loads((out / "simulation.json").read_text())
    (result,) = report["results"]
    assert (result["policy"], result["requests"], result["on_time"], result["late"]) == ("least", 4, 3, 1)
    assert (result["attainment"], result["effective_ap"], result["answered_ap"]) == (0.75, 0.45, 0.6)
    assert result["tiers"]["fast"] == {"requests": 2, "on_time": 2, "attainment": 1.0, "effective_ap": 0.6}
    assert result["tiers"][""]["attainment"] == 0.0
    assert result["arms"] == {"a@640": 4}
    assert (result["decision_ms_p50"], result["decisions"]) == (1.0, 4)
    assert (report["setting"]["decision_ms"], report["capacity"], report["profile"]) == (1.0, 100.0, "profile.json")
    assert report["rate"] == pytest.approx(3 / 5)
    table = (out / "simulation.md").read_text()
    assert table.strip() in done.stdout
    assert "| least | 75.0% | 0.450 | 0.600 | 1 | 0 | 0.6 | 1.00 |" in table
    assert "| least | 100.0% | 0.0% | 100.0% |" in table
    picture = Image.open(out / "simulation.png")
    assert picture.format == "PNG"
    assert len(picture.convert("RGB").getcolors(10**6) or []) > 10
    assert sorted(path.name for path in out.iterdir()) == ["simulation.json", "simulation.md", "simulation.png"]
    assert "simulating" in done.stderr


def test_without_matplotlib_there_is_a_table_and_a_sentence(
    profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = run(profile, recorded(tmp_path), tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "pip install -e '.[bench]'" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["simulation.json", "simulation.md"]


def test_what_cannot_be_written_leaves_the_former_file(
    profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run(profile, recorded(tmp_path), out).exit_code == 0
    former = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(_self: Path, _content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    done = run(profile, "poisson:rate=5,seconds=2", out)
    assert done.exit_code == 2
    assert "No space left" in done.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == former


@pytest.mark.parametrize(
    ("trace", "arguments", "sentence"),
    [
        ("poisson:rate=5", [], "needs seconds="),
        ("none.csv", [], "no trace none.csv"),
        ("poisson:rate=5,seconds=2", ["--policy", "best"], "no policy 'best'; there are least, wrong, or all"),
        ("poisson:rate=5,seconds=2", ["--policy", "wrong"], "wrong decided what is not valid"),
        ("poisson:rate=5,seconds=2", ["--drift", "0"], "drift must be from 0.001 to 1000, not 0.0"),
        ("poisson:rate=5,seconds=2,sizes=480x640", [], "no input size of the profile holds a picture of 480x640"),
        ("poisson:rate=5,seconds=2", ["--decode-cv", "1e-200"], "decode_cv must be 0, or from 1e-06 to 10, not 1e-200"),
        ("poisson:rate=5,seconds=2", ["--decision-ms", "inf"], "decision_ms must be from 0 to 1000000, not inf"),
        ("poisson:rate=5,seconds=2", ["--seed", "9" * 20], "seed must be from 0 to 9223372036854775807"),
        ("diurnal:rate=5,seconds=2,burst_factor=1e308", [], "burst_factor must be a number from"),
        ("poisson:rate=5,seconds=2", ["--max-batch", "0"], "largest batch"),
        ("poisson:rate=5,seconds=2", ["--profile", "none.json"], "no profile none.json"),
    ],
)
def test_what_is_wrong_is_a_sentence(
    profile: Path, tmp_path: Path, trace: str, arguments: list[str], sentence: str
) -> None:
    done = run(profile, trace, tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert sentence in done.stderr
    assert not (tmp_path / "out").exists()


def test_where_nothing_can_be_written_is_told_before_the_simulation(
    profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def simulated(*_: object) -> None:
        raise AssertionError("the simulation began")

    monkeypatch.setattr("service.simulation.simulate.simulate", simulated)
    file, taken = tmp_path / "file", tmp_path / "taken"
    file.write_text("kept")
    (taken / "simulation.md").mkdir(parents=True)
    for out, sentence in (
        (file, "is a file; name a folder with --out"),
        (file / "out", "nothing can be written to"),
        (tmp_path / "new" / ("n" * 300), "nothing can be written to"),
        (taken, "simulation.md is a folder"),
    ):
        done = run(profile, "poisson:rate=5,seconds=2", out)
        assert done.exit_code == 2
        assert isinstance(done.exception, SystemExit)
        assert sentence in done.stderr
        assert done.stderr.count("\n") == 1
    assert file.read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "profile.json", "taken"]


def test_the_same_command_repeats_with_a_fixed_cost_of_decisions(profile: Path, tmp_path: Path) -> None:
    files = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        trace = "gamma:load=0.9,cv2=4,seconds=5"
        assert run(profile, trace, tmp_path / name, "--decision-ms", 0.1, "--seed", seed).exit_code == 0
        files.append((tmp_path / name / "simulation.json").read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize("name", POLICIES)
def test_the_services_policies_decide_what_is_valid(name: str, tmp_path: Path) -> None:
    seven = read_profile(write_profile(tmp_path / "seven.json", seven_rows()))
    trace = load_trace("gamma:rate=20,cv2=4,seconds=8,late_ok=0.2,sizes=640x480+480x640", seven, 1)
    result = summarise(
        simulate(make_policy(name, tier_budgets(trace)), trace, seven, Setting(decision_ms=1.0)), trace, seven
    )
    assert result.on_time + result.late + sum(result.dropped.values()) == len(trace)
    assert 0 < result.effective_ap <= 0.82 * result.attainment
