"""A run that is killed outright goes on from its last checkpoint, whatever else it has left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.data.dataset import DataConfig, StreamSampler, load_training_set
from training.engine import checkpoint
from training.recipes import RECIPES

ROOT = Path(__file__).parents[2]
STEPS = 7


def start(data: Path, run: Path, cache: Path) -> subprocess.Popen[str]:
    """The same command every time, in a process group of its own."""
    command = [
        sys.executable, "-m", "training", "train", "--data", str(data), "--out", str(run), "--cache", str(cache),
        "--epochs", str(STEPS * 13.5 / 7), "--save-every", "2", "--workers", "1", "--threads", "1", "--device", "cpu",
        "--long-side", "64",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def dead_process() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_goes_on_where_it_saved(tiny_wider: Path, tmp_path: Path) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    last = run / "last.pt"
    first = start(tiny_wider, run, cache)
    try:
        deadline = time.monotonic() + 200
        while not last.is_file() and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
        _, errors = first.communicate()
    assert first.returncode == -signal.SIGKILL, errors[-2000:]
    saved = checkpoint.load(last)
    step = saved["progress"]["step"]
    assert step % 2 == 0
    assert 0 < step < STEPS
    assert saved["steps"] == STEPS
    # What a kill in the middle of a write leaves: of this checkpoint, and of the best one.
    for name in ("last.pt", "best.pt"):
        (run / f".{name}.{dead_process()}").write_bytes(last.read_bytes()[:100_000])

    second = start(tiny_wider, run, cache)
    _, errors = second.communicate(timeout=250)
    assert second.returncode == 0, errors[-2000:]
    counted = [int(done) for done in re.findall(rf"(\d+)/{STEPS} \[", errors)]
    assert counted[0] == step
    assert counted[-1] == STEPS
    ended = checkpoint.load(last)
    assert ended["progress"]["step"] == STEPS
    assert ended["progress"]["seconds"] > saved["progress"]["seconds"]
    assert ended["progress"]["images"] == pictures_of_a_whole_run(tiny_wider, cache)
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == []


def pictures_of_a_whole_run(data: Path, cache: Path) -> int:
    """How many crops all steps have together, whose batches differ in size."""
    config = RECIPES["scratch-cpu"]()
    photos = load_training_set(data, "train", cache, DataConfig())
    sizes = [(s.side, s.batch, s.share) for s in config.sizes]
    return sum(len(keys) for keys in StreamSampler(photos.weights(), sizes, config.seed, 0, STEPS))


def test_a_cache_that_was_killed_is_built_anew_and_leaves_nothing(tiny_wider: Path, tmp_path: Path) -> None:
    half = tmp_path / f"0123456789abcdef.{dead_process()}.tmp"
    half.write_bytes(b"half a cache")
    assert len(load_training_set(tiny_wider, "train", tmp_path, DataConfig())) == 7
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npz", ".rgb"]


def test_only_partial_files_of_ended_processes_are_removed(tmp_path: Path) -> None:
    gone, living = tmp_path / f".last.pt.{dead_process()}", tmp_path / f".last.pt.{os.getppid()}"
    own, other = tmp_path / f".best.pt.{os.getpid()}", tmp_path / ".last.pt.backup"
    for path in (gone, living, own, other, tmp_path / "last.pt"):
        path.write_bytes(b"half")
    checkpoint.remove_partials(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {living.name, other.name, "last.pt"}
    checkpoint.remove_partials(tmp_path / "not there")
