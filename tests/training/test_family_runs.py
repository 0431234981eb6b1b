"""Runs beside each other: how many at once, how they are stopped, what is said of them, and the command."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from training.__main__ import app
from training.commands import LOCK, PARENT, held
from training.config import CropSize, TrainConfig
from training.data.dataset import DataConfig, load_training_set
from training.engine import checkpoint
from training.engine.distributed import World
from training.engine.loop import RunOptions, train
from training.engine.packing import unpack
from training.family_runs import FINISHED, LOG, Job, last_line, progress, run_jobs
from training.models import DetectorConfig
from training.models.genotype import GENOTYPES

# Stand-ins for a training: one notes when it begins and ends, one saves upon SIGTERM as `train` does.
NOTES = "import sys, time; note = lambda t: open(sys.argv[1], 'a').write(t + sys.argv[2] + ' '); " \
        "note('+'); time.sleep(0.3); note('-'); print('done:', sys.argv[2])"  # fmt: skip
SAVES = """
import pathlib, signal, sys, time
def stop(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, stop)
try:
    print("  3%|#| 3/100 [00:05<02:41, 1.67s/step, cls=0.5]", file=sys.stderr)
    pathlib.Path(sys.argv[1], "ready").touch()
    while True:
        time.sleep(0.05)
except KeyboardInterrupt:
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(130)
"""
DEAF = "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); " \
       "pathlib.Path(sys.argv[1], 'ready').touch(); time.sleep(300)"  # fmt: skip

# A training that ends with its parent, and a `train-family` of it alone.
BOUND = "from training.commands import end_with_parent; end_with_parent()\n" + SAVES
FAMILY = """
import pathlib, sys
from training.family_runs import Job, run_jobs
folder = pathlib.Path(sys.argv[1])
run_jobs([Job("a", folder, (str(folder),), (sys.executable, "-c", sys.argv[2]))], 1, None, print)
"""
HOLDS = """
import pathlib, sys
from training.commands import held
with held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
ROOT = Path(__file__).parents[2]


def job(folder: Path, name: str, script: str, *options: str) -> Job:
    return Job(name, folder / name, options, (sys.executable, "-c", script))


def saver(folder: Path, name: str, script: str = SAVES) -> Job:
    return job(folder, name, script, str(folder / name))


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def test_no_more_than_asked_run_at_once_and_in_order(tmp_path: Path) -> None:
    notes, lines = tmp_path / "notes", list[str]()
    jobs = [job(tmp_path, name, NOTES, str(notes), name) for name in ("a", "b", "c", "d")]
    outcome = run_jobs(jobs, 2, None, lines.append)
    assert (sorted(outcome.done), outcome.failed, outcome.ended) == (["a", "b", "c", "d"], {}, "all")
    events, running, most = notes.read_text().split(), 0, 0
    for event in events:
        running += 1 if event[0] == "+" else -1
        most = max(most, running)
    assert most == 2
    assert set(events[:2]) == {"+a", "+b"}
    assert [line[0] for line in lines if "started" in line] == ["a", "b", "c", "d"]
    assert "done: a" in (tmp_path / "a" / LOG).read_text()
    assert "a: done: a" in lines


def test_a_failure_is_named_and_leaves_the_others(tmp_path: Path) -> None:
    broken = "import sys; print('step 1'); sys.exit('error: no photos here')"
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    jobs = [job(tmp_path, "a", broken), job(tmp_path, "b", killed), job(tmp_path, "c", "print('well')")]
    outcome = run_jobs(jobs, 1, None, lambda _line: None)
    assert outcome.failed == {
        "a": "exit status 1: error: no photos here",
        "b": "killed by SIGKILL: nothing in its log",
    }
    assert outcome.done == ["c"]
    assert not (tmp_path / "a" / FINISHED).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_so_that_all_save(tmp_path: Path, number: signal.Signals) -> None:
    jobs, before, lines = [saver(tmp_path, name) for name in ("a", "b", "c")], signal.getsignal(number), list[str]()
    sent = list[signal.Signals]()

    def interrupt(_job: Job) -> None:
        if not sent and all((tmp_path / name / "ready").exists() for name in "ab"):
            sent.append(number)  # once, since a second signal kills
            os.kill(os.getpid(), number)

    outcome = run_jobs(jobs, 2, None, lines.append, interrupt, every=0.1)
    assert outcome.ended == "interrupt"
    assert (sorted(outcome.stopped), outcome.waiting, outcome.failed) == (["a", "b"], ["c"], {})
    assert all((tmp_path / name / "saved").exists() for name in "ab")
    assert not (tmp_path / "c").exists()
    assert "a: stopped, 3/100 steps, 02:41 left" in lines
    assert signal.getsignal(number) == before


def test_a_second_signal_kills_what_does_not_listen(tmp_path: Path) -> None:
    def interrupt(one: Job) -> None:
        if (one.out / "ready").exists():
            os.kill(os.getpid(), signal.SIGINT)

    outcome = run_jobs([saver(tmp_path, "a", DEAF)], 1, None, lambda _line: None, interrupt, every=0.05)
    assert outcome.ended == "interrupt"
    assert outcome.failed["a"].startswith("killed by SIGKILL")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_run_saves_and_ends_when_its_family_is_killed(tmp_path: Path) -> None:
    family = subprocess.Popen([sys.executable, "-c", FAMILY, str(tmp_path), BOUND], cwd=ROOT, start_new_session=True)
    wait_for(tmp_path / "ready")
    family.kill()
    assert family.wait() == -signal.SIGKILL
    wait_for(tmp_path / "saved")


def test_a_run_whose_parent_has_ended_before_ends_too(tmp_path: Path) -> None:
    environment = {**os.environ, PARENT: "1" if os.getpid() != 1 else "2"}  # not its parent
    done = subprocess.run([sys.executable, "-c", BOUND, str(tmp_path)], cwd=ROOT, env=environment, timeout=60)
    assert done.returncode == -signal.SIGTERM
    assert not (tmp_path / "ready").exists()


def test_a_runs_folder_is_one_processs_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "d0"
    command = ["train", "--out", str(out), "--data", str(tmp_path / "none"), "--device", "cpu"]
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(out)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert f"another process trains in {out}" in done.output
    other.kill()
    other.communicate()
    with held(out):  # what was killed holds nothing
        assert (out / LOCK).is_file()
        child = os.fork()
        if child == 0:  # nor does a loader process that lives on
            time.sleep(300)
    try:
        assert "no split 'train'" in CliRunner().invoke(app, command).output
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_only_the_first_of_several_processes_takes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = World(1, 2, torch.device("cpu"))
    monkeypatch.setattr("training.engine.distributed.world", lambda _device: nullcontext(second))
    with held(tmp_path):
        done = CliRunner().invoke(app, ["train", "--out", str(tmp_path), "--data", str(tmp_path / "none")])
    assert "no split 'train'" in done.output


def test_time_that_is_over_stops_all(tmp_path: Path) -> None:
    outcome = run_jobs([saver(tmp_path, "a"), saver(tmp_path, "b")], 1, 1.0, lambda _line: None)
    assert (outcome.ended, outcome.stopped, outcome.waiting) == ("time", ["a"], ["b"])


def test_what_is_finished_is_not_run_again_unless_asked_for_something_else(tmp_path: Path) -> None:
    notes, lines = tmp_path / "notes", list[str]()
    one = job(tmp_path, "a", NOTES, str(notes), "a")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "last.pt").touch()
    for _ in range(2):
        assert run_jobs([one], 1, None, lines.append).done == ["a"]
    assert notes.read_text().split() == ["+a", "-a"]
    assert "a: finished before, with the same options" in lines
    run_jobs([job(tmp_path, "a", NOTES, str(notes), "a", "--epochs", "9")], 1, None, lines.append)
    assert len(notes.read_text().split()) == 4


def test_progress_is_read_from_what_a_run_leaves(tmp_path: Path) -> None:
    assert progress(tmp_path) == "starting"
    log = tmp_path / LOG
    log.write_text("old\r 90/100 [00:50<00:05, 1.8step/s]\n")
    offset = log.stat().st_size
    assert progress(tmp_path, offset) == "starting"
    with log.open("a") as file:
        file.write("  0%| | 0/700 [00:00<?, ?step/s]\r  1%| | 7/700 [00:05<08:20, 1.4step/s, cls=0.5]\r")
        file.write("dev at 640:  30%|###| 90/300 [00:10<00:20, 9.0photo/s]\r\n\n")
    assert progress(tmp_path, offset) == "7/700 steps, 08:20 left"
    (tmp_path / "dev.jsonl").write_text('{"step": 3, "ap50": 0.1}\n{"step": 6, "images": 9, "ap50": 0.51239}\n')
    assert progress(tmp_path, offset) == "7/700 steps, 08:20 left, AP.50 0.5124 at step 6"
    assert last_line(log).startswith("dev at 640")


def test_a_best_that_was_interrupted_is_not_claimed(
    tiny_wider: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop may come while best.pt is written; the run that goes on has to write it then."""
    config = TrainConfig(
        recipe="test", model=DetectorConfig(channels=8), sizes=(CropSize(64, 2),), epochs=1.0, precision="fp32"
    )
    photos = load_training_set(tiny_wider, "train", tmp_path / "cache", DataConfig())
    options, world = RunOptions(tmp_path / "run", workers=0), World(0, 1, torch.device("cpu"))
    save = checkpoint.save

    def interrupted(path: Path, content: dict[str, Any]) -> None:
        if path.name == "best.pt":
            raise KeyboardInterrupt
        save(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", interrupted)
        cut = dataclasses.replace(options, validate_every=2)
        with pytest.raises(KeyboardInterrupt):
            train(config, photos, cut, world, lambda _model: {"ap50": 0.9})
    assert checkpoint.load(tmp_path / "run" / "last.pt")["progress"]["best"] == -1.0
    assert train(config, photos, options, world, lambda _model: {"ap50": 0.4}).best == 0.4
    assert checkpoint.load(tmp_path / "run" / "best.pt")["progress"]["best"] == 0.4


@pytest.mark.slow
def test_the_command_trains_packs_and_knows_what_is_done(tiny_wider: Path, tmp_path: Path) -> None:
    def run(*extra: str) -> tuple[int, str]:
        command = [
            "train-family", "--members", "d0", "--data", str(tiny_wider), "--recipe", "scratch-cpu", "--out",
            str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"), "--epochs", "1",
            "--pack", str(tmp_path / "packs"),
            "--", "--workers", "0", "--threads", "1", "--device", "cpu", "--long-side", "64", *extra,
        ]  # fmt: skip
        done = CliRunner().invoke(app, command)
        return done.exit_code, done.output

    code, text = run()
    assert code == 0, text
    assert "d0: done:" in text
    assert json.loads((tmp_path / "runs" / "d0" / FINISHED).read_text())["options"][:2] == ["--member", "d0"]
    unpack(tmp_path / "packs" / "d0", tmp_path / "back.pt")
    _, content = checkpoint.load_detector(tmp_path / "back.pt")
    assert (content["config"]["recipe"], content["progress"]["step"]) == ("scratch-cpu", 1)
    code, text = run()
    assert code == 0
    assert "d0: finished before" in text
    code, text = run("--crops", "magic")
    assert code == 1
    assert "d0 failed, exit status 2: error: no way to cut crops 'magic'" in text


def test_bad_arguments_end_it_before_anything_starts(tiny_wider: Path, tmp_path: Path) -> None:
    for args, sentence in (
        (("--members", "d0,d9"), "no member 'd9'"),
        (("--members", "d0,d0"), "each once"),
        (("--members", "d0", "--recipe", "magic"), "no recipe 'magic'"),
        (("--members", "d0", "--neck", "magic"), "no neck 'magic'"),
        (("--members", "d0", "--genotype", str(GENOTYPES / "autofe.json")), "the neck fpn has no genotype"),
        (("--members", "d0", "--data", str(tmp_path)), "no split 'train'"),
        (("--members", "d0", "--", "--out", "x"), "--out belongs before"),
    ):
        head = ("train-family", "--out", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"))
        done = CliRunner().invoke(app, [*head, *args])
        assert done.exit_code == 2, done.output
        assert sentence in done.output
    assert not (tmp_path / "runs").exists()
