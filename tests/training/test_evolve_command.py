"""`evolve` as a whole, on an untrained supernet of a few tiny paths, with latencies that the test makes up."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from training.engine import checkpoint
from training.evolution import latency
from training.evolution.command import evolve_command
from training.evolution.latency import Build, Setup, Timing
from training.family import load_family, single_path
from training.supernet.config import SupernetConfig, smoke_supernet
from training.supernet.loop import build_supernet
from training.supernet.path import PathSpace

SPACE = PathSpace(("resnet18",), 1, 2, (8, 64))  # 8 paths, D0 among them


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    smoke = smoke_supernet()
    # So that the six photos of the tests leave one for the evaluation.
    config = SupernetConfig(SPACE, smoke.train, split=(4, 2), long_side=128)
    torch.manual_seed(0)
    content = {"config": checkpoint.as_plain(config), "supernet": build_supernet(config).state_dict()}
    file = tmp_path_factory.mktemp("supernet") / "last.pt"
    checkpoint.save(file, content)
    return file


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the networks that were timed; a million numbers take a millisecond."""
    sizes: list[int] = []

    def measure(build: Build, _setup: Setup) -> Timing:
        sizes.append(sum(p.numel() for p in build()[0].parameters()))
        return Timing(p50_ms=sizes[-1] / 1e6, runs=5)

    monkeypatch.setattr(latency, "time_network", measure)
    return sizes


def evolve(*args: str) -> tuple[int, str]:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(evolve_command)
    done = CliRunner().invoke(app, args)
    return done.exit_code, done.output


def options(supernet: Path, data: Path, folder: Path) -> list[str]:
    return [
        "--supernet", str(supernet), "--data", str(data), "--cache", str(folder / "cache"), "--device", "cpu",
        "--latencies", str(folder / "latencies.json"), "--size", "64x64", "--population", "4", "--iterations", "1",
    ]  # fmt: skip


def test_a_family_is_found_kept_and_read(supernet: Path, tiny_wider: Path, tmp_path: Path, timed: list[int]) -> None:
    pytest.importorskip("matplotlib")
    shared, out = options(supernet, tiny_wider, tmp_path), tmp_path / "out"
    code, text = evolve(*shared, "--out", str(out), "--budgets", "1,100")
    assert code == 0, text
    assert "1 ms, genetic: the space is exhausted: no path within 1 ms was found" in text
    assert "1 ms: no member" in text
    assert len(timed) == len(SPACE)  # once each, for both budgets, both searches and Table 7's D0
    family = load_family(out / "family.json")
    (member,) = family.members
    assert (member.name, member.budget_ms, family.size, family.target) == ("ms100", 100, (64, 64), "onnxruntime-cpu")
    assert single_path("ms100", out / "family.json") in SPACE
    rows = list(csv.DictReader((out / "history.csv").open()))
    assert len(rows) == 2 * len({r["path"] for r in rows if r["origin"] != "random"})
    assert [r["name"] for r in json.loads((out / "front.json").read_text())["table_7"]] == ["d0"]
    assert (out / "front.png").read_bytes()[:4] == b"\x89PNG"

    written = {file.name: file.read_bytes() for file in out.iterdir()}
    code, text = evolve(*shared, "--out", str(out), "--budgets", "1,100")
    assert code == 0, text
    assert len(timed) == len(SPACE)
    # matplotlib writes the same bytes, too, for the same numbers.
    assert {file.name: file.read_bytes() for file in out.iterdir()} == written
    code, text = evolve(*shared, "--out", str(out), "--budgets", "100", "--seed", "1")
    assert code == 2
    assert "holds a search with other settings (seed)" in text


def test_predictions_are_checked_on_whole_paths(
    supernet: Path, tiny_wider: Path, tmp_path: Path, timed: list[int]
) -> None:
    out = tmp_path / "out"
    args = options(supernet, tiny_wider, tmp_path)
    code, text = evolve(*args, "--out", str(out), "--budgets", "100", "--latency", "additive")
    assert code == 0, text
    table = json.loads((out / "additive.json").read_text())
    assert len(table["parts"]) == 1 + 2 + 4 + 4
    # Parameters do add up.
    assert table["error"]["worst"] == pytest.approx(0, abs=1e-9)
    assert table["error"]["paths"] == len(table["measured"]) > 1
    assert len(timed) == 11 + len(table["measured"])
    assert "the table of parts is off by 0.0%" in text


def test_bad_arguments_are_named(supernet: Path, tiny_wider: Path, tmp_path: Path) -> None:
    args = [*options(supernet, tiny_wider, tmp_path), "--out", str(tmp_path / "out")]
    for more, sentence in (
        (("--target", "tensorrt"), "tensorrt is not offered"),
        (("--latency", "guessed"), "no latency 'guessed'; there are measured, additive"),
        (("--budgets", "0"), "--budgets takes milliseconds"),
        (("--size", "64"), "--size takes height and width"),
        (("--latency-weight", "nan"), "its weight is not nan"),
        (("--device", "gpu"), "no device 'gpu'"),
        (("--long-side", "-3"), "Invalid value"),
        (("--photos", "-1"), "Invalid value"),
        (("--threads", "1000000"), "Invalid value"),
        (("--supernet", str(tmp_path / "absent.pt")), "absent.pt"),
    ):
        code, text = evolve(*args, *more)
        assert code == 2, text
        assert sentence in text
    assert not (tmp_path / "out").exists()
