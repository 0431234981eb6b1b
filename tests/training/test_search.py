"""The bi-level search: its gradients, its split, its resumption, and two processes that agree."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training.data.dataset import CropDataset, DataConfig, load_training_set
from training.engine import checkpoint
from training.engine.distributed import World
from training.models.genotype import AutoFAEGenotype, load_genotype
from training.models.losses import Losses
from training.search.bilevel import backward, first_order, second_order
from training.search.config import smoke_search
from training.search.loop import Search, SearchOptions, search_steps, split_photos, temperature

ROOT = Path(__file__).parents[2]


def test_photos_are_divided_once_and_for_every_seed_alike() -> None:
    names = [f"a/{k}.jpg" for k in range(200)] + [f"negatives/{k}.jpg" for k in range(20)]
    masks = split_photos(names, (9, 9, 2))
    assert [int(m[:200].sum()) for m in masks] == [90, 90, 20]
    assert [int(m[200:].sum()) for m in masks] == [10, 10, 0]
    assert np.array_equal(sum(m.astype(int) for m in masks), np.ones(220))  # type: ignore[arg-type]
    assert all(np.array_equal(a, b) for a, b in zip(masks, split_photos(names, (9, 9, 2)), strict=True))
    with pytest.raises(ValueError, match="cannot be divided 9:9:2"):
        split_photos(names[:3], (9, 9, 2))


def test_temperature_falls_linearly() -> None:
    config = replace(smoke_search(), temperature=(5.0, 1.0))
    assert [temperature(k, 5, config) for k in range(5)] == [5.0, 4.0, 3.0, 2.0, 1.0]


def test_backward_leaves_gradients_where_they_are_wanted() -> None:
    a, w, unused = (nn.Parameter(torch.tensor(v)) for v in (2.0, 3.0, 1.0))
    w.grad = torch.tensor(7.0)
    assert backward(lambda: a * w, [a, unused], [w]).item() == 6.0
    assert (a.grad, unused.grad, w.grad) == (torch.tensor(3.0), torch.tensor(0.0), torch.tensor(7.0))
    assert w.requires_grad


def test_second_order_gradient_is_that_of_the_weights_one_step_ahead() -> None:
    """Weight loss (w - a^2)^2 / 2 and architecture loss w^2 a / 2, differentiated by hand."""
    a, w, rate = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(0.7)), 0.1

    def weight_loss() -> torch.Tensor:
        return (w - a * a).square() / 2

    def arch_loss() -> torch.Tensor:
        return w.square() * a / 2

    second_order(weight_loss, arch_loss, [a], [w], rate, decay=0.0)
    ahead = 0.7 - rate * (0.7 - 1.5**2)
    # d/da of w'(a)^2 a / 2 with dw'/da = 2 a rate
    by_hand = ahead**2 / 2 + 1.5 * ahead * (2 * 1.5 * rate)
    assert a.grad is not None
    assert a.grad.item() == pytest.approx(by_hand, rel=1e-3)
    assert w.item() == pytest.approx(0.7)
    assert w.grad is None
    first_order(arch_loss, [a], [w])
    assert a.grad.item() == pytest.approx(0.7**2 / 2)


def tiny_search(data: Path, out: Path, **changes: object) -> Search:
    config = smoke_search()
    config = replace(config, **changes)  # type: ignore[arg-type]
    # In bfloat16 oneDNN now and then has no finite gradient for maps as small as these, and such a step is left out.
    config = replace(config, train=replace(config.train, precision="fp32"))
    photos = load_training_set(data, "train", out.parent / "cache", DataConfig())
    world = World(0, 1, torch.device("cpu"))
    return Search(config, photos, SearchOptions(out, "tiny", "a test"), world)


def test_architecture_rests_for_the_first_half_and_moves_then(tiny_wider: Path, tmp_path: Path) -> None:
    search = tiny_search(tiny_wider, tmp_path / "run", train=replace(smoke_search().train, epochs=4.0))
    assert search.steps == search_steps(search.config, 7, 1) == 6  # 4 x 7 photos x 9/20 in batches of 2
    initial = [p.detach().clone() for p in search.arch]
    seen: list[bool] = []
    step = search._one_step

    def watched(*batches: object) -> dict[str, float]:
        values = step(*batches)
        seen.append(all(torch.equal(a, b) for a, b in zip(initial, search.arch, strict=True)))
        return values

    search._one_step = watched  # type: ignore[method-assign]
    genotype = search.run()
    assert seen == [True, True, True, False, False, False]
    assert isinstance(genotype, AutoFAEGenotype)
    assert genotype == load_genotype(tmp_path / "run" / "genotype.json")
    assert genotype.provenance.mini_validation_ap50 is not None
    assert sorted(p.name for p in (tmp_path / "run").glob("step-*")) == [f"step-00000{k}.json" for k in range(1, 7)]
    history = [json.loads(line) for line in (tmp_path / "run" / "architecture.jsonl").read_text().splitlines()]
    assert [line["step"] for line in history] == [1, 2, 3, 4, 5, 6]
    for name, values in history[-1]["values"].items():
        assert name.startswith("beta") or sum(values) == pytest.approx(1.0, abs=1e-3)


def test_an_interrupted_search_ends_as_one_that_was_not(tiny_wider: Path, tmp_path: Path) -> None:
    """In float32 on one thread the same numbers follow from the same state."""
    train = replace(smoke_search().train, epochs=4.0, precision="fp32")
    whole = tiny_search(tiny_wider, tmp_path / "whole", train=train)
    whole.run()
    cut = tiny_search(tiny_wider, tmp_path / "cut", train=train)
    step, done = cut._one_step, 0

    def interrupted(*batches: object) -> dict[str, float]:
        nonlocal done
        if done == 4:
            raise KeyboardInterrupt
        done += 1
        return step(*batches)

    cut._one_step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    assert checkpoint.read(tmp_path / "cut" / "last.pt")["step"] == 4
    again = tiny_search(tiny_wider, tmp_path / "cut", train=train)
    again.run()
    assert again.step == whole.step
    for a, b in zip(whole.arch, again.arch, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    other = tiny_search(tiny_wider, tmp_path / "cut", train=train, arch_lr=0.5)
    with pytest.raises(ValueError, match="other settings"):
        other.run()


def test_a_search_of_other_data_or_weights_does_not_go_on(tiny_wider: Path, tmp_path: Path) -> None:
    out, cache = tmp_path / "run", tmp_path / "cache"
    weights, others = tmp_path / "a.pt", tmp_path / "b.pt"
    weights.write_bytes(b"some")
    others.write_bytes(b"others")
    photos = load_training_set(tiny_wider, "train", cache, DataConfig())
    fewer = CropDataset(photos.photos[:-1], photos.cache, photos.config)

    def search(data: CropDataset = photos, name: str = "tiny", start: Path = weights, ranks: int = 1) -> Search:
        options = SearchOptions(out, name, "a test", start)
        return Search(smoke_search(), data, options, World(0, ranks, torch.device("cpu")))

    search()._save()
    assert search().resume()
    for other, said in (
        (search(name="large"), "data: tiny, not large"),
        (search(fewer), "photos: 7, not 6"),
        (search(ranks=2), "steps: 3, not 2"),
        (search(start=others), "start: "),
    ):
        with pytest.raises(ValueError, match=f"a search of another origin .{said}.*name another --out"):
            other.resume()
    older = checkpoint.read(out / "last.pt")
    del older["origin"]
    checkpoint.save(out / "last.pt", older)
    assert search(name="large").resume()


def test_second_order_runs_to_the_end(tiny_wider: Path, tmp_path: Path) -> None:
    search = tiny_search(tiny_wider, tmp_path / "run", second_order=True)
    before = [p.detach().clone() for p in search.arch]
    search.run()
    assert all(bool(torch.isfinite(p).all()) for p in search.detector.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, search.arch, strict=True))


def test_a_search_that_learns_nothing_stops_and_says_so(
    tiny_wider: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = tiny_search(tiny_wider, tmp_path / "run", train=replace(smoke_search().train, epochs=20.0))

    def not_a_number(network: nn.Module, *_: object) -> Losses:
        total = torch.stack([p.sum() for p in network.parameters()]).sum() * float("nan")
        return Losses(total, total, total)

    monkeypatch.setattr("training.search.loop.forward_loss", not_a_number)
    before = [p.detach().clone() for p in search.weights]
    with pytest.raises(ValueError, match="10 gradients in a row were not finite at step 9"):
        search.run()
    assert all(torch.equal(a, b) for a, b in zip(before, search.weights, strict=True))


def cli(data: Path, out: Path, *more: str, ranks: int = 1, space: str = "autofae") -> list[str]:
    launcher = ["-m"]
    if ranks > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(port), "-m"]
    return [
        sys.executable, *launcher, "training", "search", space, "--budget", "smoke", "--data", str(data), "--out",
        str(out), "--cache", str(out.parent / "cache"), "--device", "cpu", "--threads", "1", *more,
    ]  # fmt: skip


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_two_processes_agree_on_the_architecture(tiny_wider: Path, tmp_path: Path) -> None:
    """The command itself compares the processes at every epoch and fails where they differ."""
    out = tmp_path / "run"
    done = subprocess.run(
        cli(tiny_wider, out, "--seeds", "3", "--epochs", "8", ranks=2), cwd=ROOT, env=ENVIRONMENT,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_genotype(out / "genotype.json")
    assert found.provenance.seed == 3
    assert found.provenance.seeds_tried == (3,)
    assert checkpoint.read(out / "seed-3" / "last.pt")["step"] == 6  # 8 x 7 x 9/20 in batches of 2 on two ranks


def ran(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_command_says_how_far_a_search_is_and_removes_half_files(tiny_wider: Path, tmp_path: Path) -> None:
    """And, at the end, that the choice of a seed of PC-DARTS means nothing."""
    out = tmp_path / "run"
    command = cli(tiny_wider, out, "--seeds", "0", space="pc-darts-fe")
    text = ran(command)
    assert "pc-darts-fe, seed 0: 3 steps, 0 of them done" in text
    assert "says nothing for pc-darts-fe" in text.splitlines()[-1]
    half = out / "seed-0" / ".last.pt.99999999"  # no process has this number
    half.write_bytes(b"half")
    assert "3 steps, 3 of them done" in ran(command)
    assert not half.exists()


def test_the_command_takes_edges_as_told_and_names_both_rules(tiny_wider: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    text = ran(cli(tiny_wider, out, "--seeds", "0", "--evaluate", "all"))
    assert load_genotype(out / "genotype.json").provenance.settings["options"]["evaluate"] == "all"
    assert "candidates with alpha >= 0.5 x the largest: top-down P6 1 P5 2 P4 3" in text.splitlines()[-1]
    assert smoke_search().options.evaluate == "sampled"


@pytest.mark.slow
def test_a_killed_search_goes_on_and_finished_ones_are_not_repeated(tiny_wider: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = cli(tiny_wider, out, "--seeds", "0,1", "--epochs", "2")
    first = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
                             text=True, start_new_session=True)  # fmt: skip
    kept = out / "seed-0" / "genotype.json"
    deadline = time.monotonic() + 200
    while not kept.is_file() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert kept.is_file()
    written = kept.stat().st_mtime_ns
    second = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=250)
    assert second.returncode == 0, second.stderr[-2000:]
    assert kept.stat().st_mtime_ns == written
    best = load_genotype(out / "genotype.json")
    both = [load_genotype(out / f"seed-{k}" / "genotype.json") for k in (0, 1)]
    assert best.provenance.mini_validation_ap50 == max(g.provenance.mini_validation_ap50 or 0.0 for g in both)


def test_nonsense_is_refused_in_a_sentence(tiny_wider: Path, tmp_path: Path) -> None:
    for more, said in (
        (("--seeds", "one"), "whole numbers"),
        (("--position", "nowhere"), "no position 'nowhere'"),
        (("--budget", "huge"), "no budget 'huge'"),
        (("--evaluate", "some"), "no choice of edges 'some'"),
        (("--start", str(tmp_path / "none.pt")), "none.pt"),
    ):
        done = subprocess.run(cli(tiny_wider, tmp_path / "o", *more), cwd=ROOT, env=ENVIRONMENT, capture_output=True,
                              text=True, timeout=100)  # fmt: skip
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
