"""The training benchmark: cases in processes of their own, kept results, refusals."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from benchmarks import training
from benchmarks.training import CaseError, cases_for, main, slug
from benchmarks.training_case import Case, DecodedEachTime, Part, Speed, Task
from training.data.cache import build_cache
from training.data.dataset import list_photos

app = Typer()
app.command()(main)


def bench(data: Path, tmp_path: Path, *options: str) -> Result:
    shared = ["--data", str(data), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "speed.json")]
    return CliRunner().invoke(app, [*shared, "--device", "cpu", "--sides", "64", "--batch", "2", *options])


def speed(case: Case, pictures: float = 8.0) -> Speed:
    part = Part(name="forward", ms=5.0, share=1.0)
    return Speed(
        case=case, date="2026-01-01", load=0.1, steps=3, seconds=1.0, pictures_s=pictures, megapixels_s=0.03,
        data_pictures_s=99.0, waiting=0.02, first_step_s=0.1, parts=[part], operators=[part],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cases_are_measured_and_kept(tiny_wider: Path, tmp_path: Path) -> None:
    done = bench(tiny_wider, tmp_path, "--seconds", "0.3", "--cases", "cached-2x1,device-1x1")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "speed.json").read_text())
    assert report["hardware"]["cpu"]
    assert report["photos"] == 7
    assert [row["case"]["name"] for row in report["cases"]] == ["cached-2x1", "device-1x1"]
    for row in report["cases"]:
        assert row["pictures_s"] > 0
        assert row["megapixels_s"] == pytest.approx(row["pictures_s"] * 64**2 / 1e6, abs=0.001)
        assert row["data_pictures_s"] > 0
        assert 0 <= row["waiting"] < 1
        names = [part["name"] for part in row["parts"]]
        assert names == [
            "waiting for data", "augmentation", "forward", "matching and loss", "backward", "optimiser",
            "moving average",
        ]  # fmt: skip
        assert sum(part["share"] for part in row["parts"]) == pytest.approx(1, abs=0.01)
        assert len(row["operators"]) == 15
        assert any("conv" in part["name"] for part in row["operators"])


def test_earlier_cases_stay_and_failures_are_told(
    tiny_wider: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(task: Task) -> Speed:
        ran.append(task.case.name)
        if task.case.name == "cached-1x2":
            raise CaseError("its process ended with signal 9 and no result")
        return speed(task.case, pictures=len(ran))

    ran: list[str] = []
    monkeypatch.setattr(training, "run_case", run)
    assert bench(tiny_wider, tmp_path).exit_code == 1
    assert ran == ["decode-1x1", "cached-1x1", "cached-1x2", "cached-2x1"]
    again = bench(tiny_wider, tmp_path, "--cases", "cached-1x1")
    assert again.exit_code == 0
    report = json.loads((tmp_path / "speed.json").read_text())
    kept = {row["case"]["name"]: row["pictures_s"] for row in report["cases"]}
    assert kept == {"decode-1x1": 1, "cached-2x1": 4, "cached-1x1": 5}
    assert report["failed"] == {}


def test_an_interrupt_keeps_what_is_finished(tiny_wider: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(task: Task) -> Speed:
        if task.case.name != "decode-1x1":
            raise KeyboardInterrupt
        return speed(task.case)

    monkeypatch.setattr(training, "run_case", run)
    stopped = bench(tiny_wider, tmp_path)
    assert stopped.exit_code == 130
    assert "1 finished cases are kept" in stopped.output
    assert len(json.loads((tmp_path / "speed.json").read_text())["cases"]) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--cases", "warp"), "no case 'warp'; there are decode-1x1"),
        (("--sides", "640,x"), "sides must be whole numbers"),
        (("--batch", "0"), "batch must be whole numbers"),
        (("--device", "tpu"), "there is no device 'tpu' here"),
        (("--recipe", "magic"), "no recipe 'magic'"),
        (("--data", "nowhere"), "no split 'train'"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(
    tiny_wider: Path, tmp_path: Path, options: tuple[str, str], sentence: str
) -> None:
    refused = bench(tiny_wider, tmp_path, *options)
    assert refused.exit_code == 2
    assert sentence in refused.output


def test_a_case_without_a_cache_decodes_the_same_pictures(tiny_wider: Path, tmp_path: Path) -> None:
    files = list_photos(tiny_wider, "train")[1]
    known = build_cache(files, tmp_path)
    decoded = pickle.loads(pickle.dumps(DecodedEachTime(known, files)))
    assert len(decoded) == len(known) == 7
    for k in range(len(files)):
        assert decoded.shape(k) == known.shape(k)
        assert np.array_equal(decoded[k], known[k])


def test_a_case_that_cannot_run_says_why(tmp_path: Path) -> None:
    case = Case(name="lost", side=64, batch=2)
    lost = Task(
        case=case, data=tmp_path, split="train", cache=tmp_path, recipe="scratch-cpu", device="cpu", seconds=0.1
    )
    with pytest.raises(CaseError, match="no split 'train'"):
        training.run_case(lost)


def test_a_gpu_has_its_cases_at_every_batch() -> None:
    cases = [case for case in cases_for("cuda", [640], [32, 64, 128]) if case.chosen]
    assert {(case.name, case.batch) for case in cases} == {
        (name, batch) for name in ("loader", "device", "device-compiled") for batch in (32, 64, 128)
    }
    assert all(case.precision == "bf16" for case in cases)
    assert slug("NVIDIA H200") == "nvidia-h200"
