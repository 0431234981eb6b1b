"""Training of a supernet: resumed, on several processes, read back, and cut."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from training.data.dataset import CropDataset, load_training_set
from training.engine import checkpoint
from training.engine.distributed import World
from training.supernet.checkpoint import load_supernet, save_cut, supernet_config
from training.supernet.config import SupernetConfig, smoke_supernet
from training.supernet.loop import LAST, SupernetOptions, SupernetTraining, divide, held_out_photos
from training.supernet.path import PathSpace, SinglePath

ROOT = Path(__file__).parents[2]
ALONE = World(0, 1, torch.device("cpu"))
SPACE = PathSpace(backbones=("resnet18",), max_modules=1, max_head_convs=2, channels=(4, 8))


def config(epochs: float = 2.0) -> SupernetConfig:
    base = smoke_supernet()
    # In bfloat16 oneDNN now and then has no finite gradient for maps as small as these, and such a step is left out.
    return replace(base, space=SPACE, train=replace(base.train, epochs=epochs, precision="fp32"))


@pytest.fixture(scope="module")
def photos(tiny_wider: Path, tmp_path_factory: pytest.TempPathFactory) -> CropDataset:
    return load_training_set(tiny_wider, "train", tmp_path_factory.mktemp("cache"), config().train.data)


def trained(photos: CropDataset, out: Path, stop_at: int | None = None) -> dict[str, Tensor]:
    options = SupernetOptions(out, workers=0, save_every=100)
    training = SupernetTraining(config(), photos, options, ALONE)
    assert training.steps == 6  # 2 x 6 photos in batches of 2
    if stop_at is not None:
        step = training._one_step

        def one_step(*arguments: Any) -> dict[str, Tensor]:
            if training.step == stop_at:  # in the middle of a step, whose half must not be kept
                os.kill(os.getpid(), signal.SIGINT)
            return step(*arguments)

        training._one_step = one_step  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            training.run()
        assert checkpoint.read(out / LAST, "supernet")["step"] == stop_at + 1
        training = SupernetTraining(config(), photos, options, ALONE)
    return {name: value.clone() for name, value in training.run().state_dict().items()}


@pytest.mark.parametrize("stop_at", [1, 4])  # before channels are sorted, and after
def test_a_stopped_training_ends_as_one_that_was_not(photos: CropDataset, tmp_path: Path, stop_at: int) -> None:
    through = trained(photos, tmp_path / "through")
    again = trained(photos, tmp_path / "again", stop_at)
    assert not [name for name, value in through.items() if not torch.equal(value, again[name])]


def test_the_photos_of_the_evaluation_are_never_trained_on(photos: CropDataset) -> None:
    part, kept = divide(photos, config())
    assert len(kept) == 1
    assert part.weights()[kept].tolist() == [0.0]
    assert (part.weights() > 0).sum() == len(photos) - 1
    assert held_out_photos(photos, config()) == [int(kept[0])]


def test_another_configuration_does_not_go_on(photos: CropDataset, tmp_path: Path) -> None:
    options = SupernetOptions(tmp_path, workers=0)
    SupernetTraining(config(1.0), photos, options, ALONE).run()
    with pytest.raises(ValueError, match="other settings; name another --out"):
        SupernetTraining(config(2.0), photos, options, ALONE).run()


def test_other_photos_or_weights_do_not_go_on(photos: CropDataset, tmp_path: Path) -> None:
    weights, others = tmp_path / "a.pt", tmp_path / "b.pt"
    weights.write_bytes(b"some")
    others.write_bytes(b"others")
    options = SupernetOptions(tmp_path / "run", start=weights, workers=0, data="tiny")
    fewer = CropDataset(photos.photos[:-1], photos.cache, photos.config)
    SupernetTraining(config(), photos, options, ALONE)._save()
    half = tmp_path / "run" / ".last.pt.99999999"  # no process has this number
    half.write_bytes(b"half")
    assert SupernetTraining(config(), photos, options, ALONE).resume()
    assert not half.exists()
    for data, changed, world, said in (
        (photos, replace(options, data="large"), ALONE, "data: tiny, not large"),
        (fewer, options, ALONE, "photos: 7, not 6"),
        (photos, options, replace(ALONE, size=2), "steps: 6, not 3"),
        (photos, replace(options, start=others), ALONE, "start: "),
        (photos, replace(options, imagenet=weights), ALONE, "imagenet: none"),
    ):
        with pytest.raises(ValueError, match=f"a supernet of another origin .{said}.*name another --out"):
            SupernetTraining(config(), data, changed, world).resume()
    older = checkpoint.read(tmp_path / "run" / LAST)
    del older["origin"]
    checkpoint.save(tmp_path / "run" / LAST, older)
    assert SupernetTraining(config(), photos, replace(options, data="large"), ALONE).resume()


def test_the_command_says_how_far_a_supernet_is(tiny_wider: Path, tmp_path: Path) -> None:
    words = (
        "supernet", "--budget", "smoke", "--data", tiny_wider, "--out", tmp_path / "run", "--cache", tmp_path / "cache",
        "--device", "cpu", "--threads", "1", "--workers", "0", "--channels", "4",
    )  # fmt: skip
    first, second = command(*words), command(*words)
    assert "6 steps, 0 of them done" in first.stdout, first.stderr[-3000:]
    assert "6 steps, 6 of them done" in second.stdout


def test_a_supernet_is_read_back_and_a_path_of_it_is_a_checkpoint(photos: CropDataset, tmp_path: Path) -> None:
    trained_state = trained(photos, tmp_path)
    supernet, content = load_supernet(tmp_path / LAST)
    assert supernet_config(content) == config()
    assert all(torch.equal(value, trained_state[name]) for name, value in supernet.state_dict().items())
    path = SinglePath("resnet18", (False,), 1, 4)
    save_cut(tmp_path / "cut.pt", supernet.cut(path), path, content)
    detector, cut = checkpoint.load_detector(tmp_path / "cut.pt")
    assert cut["progress"]["images"] == 12
    assert cut["config"]["model"]["channels"] == 4
    pictures = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(detector(pictures).logits, supernet(pictures, path).logits)
    with pytest.raises(ValueError, match="not a checkpoint of this command"):
        load_supernet(tmp_path / "cut.pt")


def command(*words: str | Path, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    launcher: list[str] = ["-m"]
    if ranks > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(port), "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *launcher, "training", *map(str, words)], cwd=ROOT, env=environment, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip


def test_two_processes_train_one_supernet(tiny_wider: Path, tmp_path: Path) -> None:
    """The command itself compares the processes' weights at the end and fails where they differ."""
    out = tmp_path / "run"
    done = command(
        "supernet", "--budget", "smoke", "--data", tiny_wider, "--out", out, "--cache", tmp_path / "cache", "--device",
        "cpu", "--threads", "1", "--workers", "0", "--channels", "4,8", "--save-every", "1", ranks=2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    content = checkpoint.read(out / LAST, "supernet")
    assert (content["step"], content["images"]) == (3, 12)
    cut = command("cut", "R18-FAE-Hx2-8", "--supernet", out / LAST, "--out", tmp_path / "cut.pt", "--data", tiny_wider,
                  "--cache", tmp_path / "cache")  # fmt: skip
    assert cut.returncode == 0, cut.stderr[-3000:]
    detector, _ = checkpoint.load_detector(tmp_path / "cut.pt")
    means = [m.running_mean for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(mean is not None and np.isfinite(mean.numpy()).all() for mean in means)


def test_what_cannot_be_done_is_said_in_a_sentence(tiny_wider: Path, tmp_path: Path) -> None:
    for words, message in (
        (("supernet", "--budget", "huge"), "no budget 'huge'; there are smoke, small, gpu, paper"),
        (("supernet", "--budget", "smoke", "--channels", "8,4"), "channels must ascend"),
        (("supernet", "--budget", "smoke", "--backbones", "vgg16"), "no backbone 'vgg16'"),
        (("cut", "R18-FA-Hx1-64", "--supernet", tmp_path / "none.pt"), "none.pt"),
    ):
        done = command(*words, "--data", tiny_wider, "--out", tmp_path / "x", "--cache", tmp_path / "cache")
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
