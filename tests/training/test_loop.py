"""Schedule, averaging, checkpoints, resuming, interrupts, and two processes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from training.commands import validation_split
from training.config import CropSize, OptimConfig, TrainConfig
from training.data.dataset import CropDataset, DataConfig, SampleKey, collate, load_training_set
from training.engine import checkpoint
from training.engine.distributed import World
from training.engine.distributed import world as join
from training.engine.loop import Progress, RunOptions, steps_by, train
from training.engine.optim import Ema, for_ranks, learning_rate
from training.engine.validate import score_split
from training.models import Detector, DetectorConfig
from training.models.detector import normalize
from training.models.losses import LossConfig, detection_loss
from training.recipes import RECIPES

WORLD = World(0, 1, torch.device("cpu"))
ROOT = Path(__file__).parents[2]


def config(epochs: float) -> TrainConfig:
    return TrainConfig(
        recipe="test",
        model=DetectorConfig(channels=8),
        optim=OptimConfig(name="adamw", lr=1e-3, warmup_steps=2, schedule="multistep"),
        sizes=(CropSize(64, 2),),
        epochs=epochs,
        precision="fp32",
    )


@pytest.fixture
def photos(tiny_wider: Path, tmp_path: Path) -> CropDataset:
    return load_training_set(tiny_wider, "train", tmp_path / "cache", DataConfig())


def no_validation(_model: Detector) -> dict[str, float]:
    return {"ap50": 0.5}


def test_paper_schedule() -> None:
    optim = RECIPES["paper"]().optim
    rates = [learning_rate(epoch * 100, 12_000, optim) for epoch in (6, 59, 61, 101, 119)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.0001, 0.0001])
    assert learning_rate(0, 12_000, optim) == pytest.approx(0.01 / 500)


def test_wsd_schedule_ends_at_zero() -> None:
    optim = OptimConfig(schedule="wsd", lr=1.0, warmup_steps=0, decay=0.5)
    assert [learning_rate(s, 100, optim) for s in (0, 50, 75, 100)] == pytest.approx([1.0, 1.0, 0.5, 0.0])


def test_paper_recipe_has_the_papers_numbers() -> None:
    paper = RECIPES["paper"]()
    assert (paper.loss.match.iou, paper.loss.match.best, paper.loss.box) == (0.4, 1, "smooth_l1")
    optim = paper.optim
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
    assert (paper.epochs, paper.sizes[0].batch) == (120, 32)


def test_the_papers_rate_follows_the_pictures_of_a_step_and_no_other_recipes() -> None:
    paper = RECIPES["paper"]()
    assert [for_ranks(paper, ranks).lr for ranks in (1, 2, 8)] == pytest.approx([0.01, 0.02, 0.08])
    mixed = dataclasses.replace(paper, sizes=(CropSize(512, 48, 0.5), CropSize(640, 16, 0.5)))
    assert mixed.images_a_step(1) == 32
    assert for_ranks(mixed, 4).lr == pytest.approx(0.04)
    few = dataclasses.replace(paper, sizes=(CropSize(224, 8),))
    assert for_ranks(few, 1).lr == 0.01
    for name in set(RECIPES) - {"paper"}:
        recipe = RECIPES[name]()
        assert for_ranks(recipe, 8) == recipe.optim


def test_a_run_takes_the_rate_of_its_step(photos: CropDataset, tmp_path: Path) -> None:
    optim = OptimConfig(lr=1e-4, warmup_steps=0, milestones=(), lr_images=1)  # for steps of two
    settings = dataclasses.replace(config(2 / 3.5), optim=optim)
    options = RunOptions(tmp_path, workers=0)
    train(settings, photos, options, WORLD, no_validation)
    state = checkpoint.load(tmp_path / "last.pt")
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(2e-4)
    del state["config"]["optim"]["lr_images"]  # as older checkpoints have it
    checkpoint.save(tmp_path / "last.pt", state)
    longer = dataclasses.replace(settings, epochs=3 / 3.5)
    assert train(longer, photos, options, WORLD, no_validation).step == 3


def test_ranks_wait_longer_than_an_evaluation_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.distributed.init_process_group", lambda _backend, **options: asked.append(options))
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    with join("cpu") as joined:
        assert (joined.rank, joined.size) == (1, 2)
    assert asked == [{"timeout": timedelta(hours=2)}]


def test_the_split_to_evaluate_on_is_dev_or_widers_val(tiny_wider: Path, tmp_path: Path) -> None:
    assert validation_split(tiny_wider) == "dev"
    assert validation_split(tmp_path) == "dev"  # which is then missed by name
    (tmp_path / "WIDER_val" / "images").mkdir(parents=True)
    (tmp_path / "wider_face_split").mkdir()
    (tmp_path / "wider_face_split" / "wider_face_val_bbx_gt.txt").touch()
    assert validation_split(tmp_path) == "val"


def test_ema_follows_the_model() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    ema = Ema(model, 0.5)
    torch.nn.init.constant_(model.weight, 1.0)
    ema.update(model)
    assert ema.state["weight"].item() == pytest.approx(1 - 2 / 11)
    for _ in range(50):
        ema.update(model)
    assert ema.state["weight"].item() == pytest.approx(1.0, abs=1e-6)


def test_a_resumed_run_ends_in_the_same_state_bit_for_bit(photos: CropDataset, tmp_path: Path) -> None:
    whole, parts = RunOptions(tmp_path / "whole", workers=0), RunOptions(tmp_path / "parts", workers=0)
    train(config(6 / 3.5), photos, whole, WORLD, no_validation)

    class StopError(Exception):
        pass

    def stop(_model: Detector) -> dict[str, float]:
        raise StopError

    cut_off = dataclasses.replace(parts, save_every=3, validate_every=4)
    with pytest.raises(StopError):
        train(config(6 / 3.5), photos, cut_off, WORLD, stop)
    assert checkpoint.load(tmp_path / "parts" / "last.pt")["progress"]["step"] == 3
    train(config(6 / 3.5), photos, parts, WORLD, no_validation)
    one, two = (checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    assert one["progress"]["step"] == two["progress"]["step"] == 6
    for part in ("model", "ema"):
        assert all(torch.equal(one[part][key], two[part][key]) for key in one[part])
    moments = [s["optimizer"]["state"] for s in (one, two)]
    assert all(torch.equal(moments[0][k]["exp_avg"], moments[1][k]["exp_avg"]) for k in moments[0])


def test_the_length_of_a_run_by_the_clock_follows_its_speed() -> None:
    assert steps_by(2.0, Progress(step=30, seconds=60.0)) == 60
    assert steps_by(2.0, Progress(step=90, seconds=121.0)) < 90
    assert steps_by(2.0, Progress()) > 10**9


def test_a_run_by_the_clock_ends_then_with_its_schedule(
    photos: CropDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock by which each step takes six seconds; it is stopped in between, and goes on."""
    clock = itertools.count(6, 6)
    monkeypatch.setattr("training.engine.loop.time", SimpleNamespace(monotonic=lambda: next(clock)))
    optim = OptimConfig(name="adamw", lr=1.0e-3, warmup_steps=0, schedule="wsd", decay=1.0)
    settings = dataclasses.replace(config(100), optim=optim)

    def interrupt(_model: Detector) -> dict[str, float]:
        raise KeyboardInterrupt

    options = RunOptions(tmp_path, workers=0, minutes=0.8)
    with pytest.raises(KeyboardInterrupt):
        train(settings, photos, dataclasses.replace(options, validate_every=3), WORLD, interrupt)
    assert checkpoint.load(tmp_path / "last.pt")["progress"]["seconds"] == 18
    done = train(settings, photos, options, WORLD, no_validation)
    assert (done.step, done.seconds) == (8, 48)
    state = checkpoint.load(tmp_path / "last.pt")
    assert state["steps"] == 8
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(1e-3 / 8)  # of the last step


def test_a_run_by_the_clock_has_one_process(photos: CropDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has one process"):
        train(config(1), photos, RunOptions(tmp_path, minutes=1.0), World(0, 2, torch.device("cpu")), no_validation)


def test_an_interrupt_saves_first(photos: CropDataset, tmp_path: Path) -> None:
    def interrupt(_model: Detector) -> dict[str, float]:
        raise KeyboardInterrupt

    options = RunOptions(tmp_path, workers=0, save_every=0, validate_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(config(2), photos, options, WORLD, interrupt)
    assert checkpoint.load(tmp_path / "last.pt")["progress"]["step"] == 2


def test_the_detector_learns(photos: CropDataset, tmp_path: Path, tiny_wider: Path) -> None:
    losses = []
    # A rate and an average at which every seed learns: rounding differs from processor to processor as seeds do.
    optim = dataclasses.replace(config(1).optim, lr=3e-3, ema=0.9)
    for epochs in (1, 30):
        out = tmp_path / str(epochs)
        settings = dataclasses.replace(config(epochs), optim=optim)
        train(settings, photos, RunOptions(out, workers=0, save_every=0), WORLD, no_validation)
        events = list(out.glob("events*"))
        assert events
        losses.append(_loss(out, photos))
    assert losses[1] < min(losses[0], 4.4) * 0.8  # 4.4: of fresh weights
    detector, content = checkpoint.load_detector(tmp_path / "30" / "best.pt")
    assert content["config"]["recipe"] == "test"
    scores = score_split(detector, tiny_wider, "dev", 128)
    assert set(scores) == {"ap50", "ap", "recall50"}


def _loss(run: Path, photos: CropDataset) -> float:
    """Mean loss of the run's averaged weights over a fixed set of crops."""
    detector, _ = checkpoint.load_detector(run / "last.pt")
    images, targets = collate([photos[SampleKey(k % 6, 64, (9, 9, k))] for k in range(24)])
    with torch.no_grad():
        losses = detection_loss(detector(normalize(images)), targets, LossConfig())
    return float(losses.cls + losses.box)


def test_checkpoints_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"not a checkpoint")
    torch.save({"weights": 1}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ValueError, match=name):
            checkpoint.load(tmp_path / name)


def run_cli(*args: str, torchrun: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "training", *args]
    if torchrun:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
        command = [sys.executable, "-m", *launcher, "-m", "training", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_train_one_model(tiny_wider: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run_cli(
        "train", "--data", str(tiny_wider), "--out", str(out), "--cache", str(tmp_path / "cache"), "--epochs", "8",
        "--workers", "0", "--device", "cpu", "--long-side", "64", torchrun=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    state = checkpoint.load(out / "last.pt")
    # 7 photos x 8 epochs in batches of 13.5 on each of two ranks
    assert state["progress"]["step"] == 2
    assert state["progress"]["images"] > 20
    assert json.loads((out / "dev.jsonl").read_text().splitlines()[-1])["step"] == 2


def test_commands_refuse_nonsense_in_a_sentence(tmp_path: Path) -> None:
    for args, sentence in (
        (("train", "--data", str(tmp_path)), "no split 'train'"),
        (("train", "--recipe", "magic"), "no recipe 'magic'"),
        (("describe", "d9"), "no member 'd9'"),
    ):
        done = run_cli(*args, *(("--out", str(tmp_path / "o")) if args[0] == "train" else ()))
        assert done.returncode == 2
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr


def test_a_folder_belongs_to_one_run(photos: CropDataset, tmp_path: Path) -> None:
    options = RunOptions(tmp_path, workers=0, save_every=0)
    train(config(1), photos, options, WORLD, no_validation)
    train(config(2), photos, options, WORLD, no_validation)  # another length is the same run
    assert checkpoint.load(tmp_path / "last.pt")["stages"] == []
    for other in (
        dataclasses.replace(config(2), recipe="other"),
        dataclasses.replace(config(2), model=DetectorConfig(channels=16)),
        dataclasses.replace(config(2), seed=5),
    ):
        with pytest.raises(ValueError, match="name another --out"):
            train(other, photos, options, WORLD, no_validation)
    kept = json.loads((tmp_path / "config.json").read_text())
    assert (kept["recipe"], kept["seed"], kept["model"]["channels"]) == ("test", 0, 8)


def test_stages_survive_a_resume(photos: CropDataset, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    train(config(1), photos, RunOptions(first, workers=0), WORLD, no_validation)
    options = RunOptions(second, workers=0, init=first / "last.pt")
    for epochs in (1, 2):
        train(config(epochs), photos, options, WORLD, no_validation)
        stages = checkpoint.load(second / "last.pt")["stages"]
        assert [(s["recipe"], s["images"]) for s in stages] == [("test", 8)]


def test_starting_weights_are_refused_in_a_sentence(tiny_wider: Path, tmp_path: Path) -> None:
    for name, sentence in (("absent.onnx", "absent.onnx"), ("models/d0/d0-int8.onnx", "full-precision")):
        done = run_cli("train", "--data", str(tiny_wider), "--out", str(tmp_path / "o"), "--cache", str(tmp_path / "c"),
                       "--init", name, "--workers", "0", "--device", "cpu")  # fmt: skip
        assert done.returncode == 2, done.stderr[-2000:]
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_made_is_named(tiny_wider: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_cli("train", "--data", str(tiny_wider), "--out", str(tmp_path / "file" / "run"), "--device", "cpu")
    assert done.returncode == 2
    assert "file" in done.stderr
    assert "Traceback" not in done.stderr


def test_describe_prints_d0() -> None:
    described = json.loads(run_cli("describe", "d0").stdout)
    assert described["backbone"] == "resnet18"
    assert described["parameters"] > 11_000_000
