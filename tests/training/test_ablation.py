"""Ablation: what a row changes, how gains are counted, and the command on a tiny set."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from training.__main__ import app
from training.ablation.changes import BASE, changes
from training.ablation.command import KINDS
from training.ablation.run import budgeted
from training.ablation.table import Budget, Result, summarise
from training.engine.optim import for_ranks
from training.recipes import RECIPES


def result(row: str, seed: int, ap50: float, kind: str = "recipe") -> Result:
    return Result(
        row=row, about=row, kind=kind, seed=seed, ap50=ap50, ap=ap50 / 2, recall50=0.9, images=10, seconds=1.0
    )  # fmt: skip


def flat(config: object) -> dict[str, object]:
    out: dict[str, object] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}", inner)
        else:
            out[prefix] = value

    walk("", dataclasses.asdict(config))  # type: ignore[call-overload]
    return out


def test_every_row_changes_something_and_only_its_own_part() -> None:
    for name, own in (("paper", "sgd"), ("paper-adamw", "adamw")):
        base = RECIPES[name]()
        before = flat(base)
        seen = set()
        for row in changes(KINDS).values():
            after = flat(row.apply(base))
            differing = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
            assert bool(differing) == (row.name not in (BASE, own)), row.name
            assert len({key.split(".")[1] for key in differing}) <= 1, row.name
            seen.add(tuple(sorted((key, str(after.get(key))) for key in differing)))
        assert len(seen) == len(changes(KINDS)) - 1  # the base and its own optimiser are the same
        assert RECIPES[name]() == base


def test_the_budget_sets_crops_and_steps_alone() -> None:
    base = RECIPES["paper"]()
    budget = Budget(
        base="paper", member="d0", data="d", device="cpu", images=800, side=224, batch=8, start=None, start_sha256=None,
        keep_head=False, split="dev", photos=1, long_side=640,
    )  # fmt: skip
    small = budgeted(base, budget, 400)
    assert small.sizes[0].side == 224
    assert small.epochs == 2.0
    assert small.optim.warmup_steps == 10
    assert small.optim.lr == pytest.approx(0.005)
    large = budgeted(base, budget.model_copy(update={"batch": 128}), 400)
    assert for_ranks(large, 1).lr == pytest.approx(0.02)  # by the square root, and not by the linear rule as well
    assert (small.loss, small.data, small.model) == (base.loss, base.data, base.model)


def test_gains_are_taken_over_shared_seeds() -> None:
    results = [
        result("base", 0, 0.50), result("base", 1, 0.60), result("better", 1, 0.65), result("worse", 0, 0.45),
        result("worse", 1, 0.59), result("elsewhere", 7, 0.60), result("less-data", 0, 0.49, "data"),
    ]  # fmt: skip
    lines = {line.row: line for line in summarise(results, "base")}
    assert list(lines) == ["base", "better", "elsewhere", "worse", "less-data"]
    assert lines["base"].gain is None
    assert lines["base"].spread == pytest.approx(0.10)
    assert lines["better"].gain == pytest.approx(0.05)
    assert lines["worse"].gain == pytest.approx(-0.03)
    assert lines["elsewhere"].gain is None


def run(*args: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["ablate", *args])
    return done.exit_code, done.output


def test_the_command_keeps_and_resumes(tiny_wider: Path, tmp_path: Path) -> None:
    out = tmp_path / "table"
    shared = (
        "--data", str(tiny_wider), "--out", str(out), "--cache", str(tmp_path / "cache"), "--images", "4",
        "--side", "64", "--batch", "2", "--long-side", "64", "--device", "cpu", "--workers", "0",
        "--without", "event=event",
    )  # fmt: skip
    code, text = run(*shared, "--rows", "atss", "--seeds", "0")
    assert code == 0, text
    table = json.loads((out / "table.json").read_text())
    assert [(r["row"], r["seed"], r["images"]) for r in table["results"]] == [("base", 0, 4), ("atss", 0, 4)]
    assert "| atss |" in (out / "table.md").read_text()
    code, text = run(*shared, "--rows", "atss,photos-50", "--seeds", "0")
    assert code == 0, text
    again = json.loads((out / "table.json").read_text())
    assert again["results"][:2] == table["results"]
    assert again["results"][2]["row"] == "photos-50"
    assert sorted(p.name for p in out.iterdir()) == ["table.json", "table.md"]
    code, text = run(*shared, "--rows", "sgd,without-event", "--seeds", "0,0")
    assert code == 0, text
    assert text.count("the base is so already") == 1  # sgd is the paper's own
    assert [r["row"] for r in json.loads((out / "table.json").read_text())["results"]][3:] == ["without-event"]
    code, text = run(*shared, "--rows", "atss", "--seeds", "0", "--long-side", "96")
    assert code == 2
    assert "another budget" in text


def test_bad_arguments_are_named(tiny_wider: Path, tmp_path: Path) -> None:
    data = ("--data", str(tiny_wider), "--out", str(tmp_path / "o"))
    for args, sentence in (
        (("--rows", "magic"), "no row 'magic'"),
        (("--base", "magic"), "no 'magic'"),
        (("--without", "oops"), "name=folder"),
        (("--seeds", "x"), "--seeds takes whole numbers"),
        (("--seeds", "-1"), "--seeds takes whole numbers"),
        (("--side", "300"), "multiple of 8"),
        (("--device", "gpu"), "no device 'gpu'"),
        (("--limit", "-3"), "Invalid value"),
        (("--long-side", "0"), "Invalid value"),
        (("--start", str(tmp_path / "absent.onnx")), "absent.onnx"),
    ):
        code, text = run(*data, *args)
        assert code == 2
        assert sentence in text


def test_rows_are_listed_without_any_data() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training", "ablate", "--list"], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert all(name in done.stdout for name in ("base", "atss", "photos-25", "without-crowds"))


def test_a_row_that_cannot_be_made_leaves_the_others(tiny_wider: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    code, text = run(
        "--data", str(tiny_wider), "--out", str(tmp_path / "t"), "--cache", str(tmp_path / "cache"), "--images", "2",
        "--side", "64", "--batch", "2", "--long-side", "64", "--device", "cpu", "--workers", "0", "--seeds", "0",
        "--start", str(root / "models" / "d0" / "d0.onnx"), "--keep-head", "--rows", "iou-branch,no-average",
    )  # fmt: skip
    assert code == 1
    assert "another architecture" in text
    table = json.loads((tmp_path / "t" / "table.json").read_text())
    assert [r["row"] for r in table["results"]] == ["base", "no-average"]
