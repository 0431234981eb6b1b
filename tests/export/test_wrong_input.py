"""What goes wrong is a sentence, told before minutes are spent, and costs nothing of what is there."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from export import shipping
from export.__main__ import app
from export.profile import profile_peers
from export.shipping import apply_rule, member_folders
from service.engines.base import Engine
from service.profiling import Timing
from service.repository.manifest import InputSize
from service.repository.store import load_manifest
from tests.service.fake_model import write_fake_repository


def refused(*arguments: object) -> str:
    """What a command says that ends with status 2."""
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    return result.output


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """d0 and d1 of 64 and 128 pixels, in seconds."""
    return write_fake_repository(tmp_path / "models", ("d0", "d1"))


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.pop(name)


@pytest.mark.parametrize(
    "change",
    [
        without("progress"),
        lambda content: content.update(ema=3),
        lambda content: content.update(config=5),
        lambda content: content["ema"].popitem(),
        lambda content: content["config"]["model"].update(channels=32),
        lambda content: content["config"]["model"].update(backbone="none"),
        lambda content: content["config"]["model"].pop("anchors"),
    ],
)
def test_a_checkpoint_of_something_else_is_named_and_leaves_nothing(
    change: Callable[[dict[str, Any]], object], checkpoint: Path, tmp_path: Path
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    path = tmp_path / "runs" / "d0" / "best.pt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    said = refused("onnx", path, "--member", "x", "--repository", tmp_path / "models")
    assert f"{path} holds no detector of this version" in said
    assert not (tmp_path / "models").exists()
    said = refused("all", "--members", "d0", "--runs", tmp_path / "runs", "--repository", tmp_path / "models")
    assert "1 member(s) failed" in said
    assert str(path) in said


@pytest.mark.parametrize("name", ["../outside", "Two Words", "", "x" * 60])
def test_a_member_is_named_before_anything_is_written(name: str, checkpoint: Path, tmp_path: Path) -> None:
    said = refused("onnx", checkpoint, "--member", name, "--repository", tmp_path / "models")
    assert "--member is a short name" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"[1]", b"3", b"{", b"\xff\xfe", b'{"by_size": [1]}', b'{"by_size": {"small": {"faces": "x"}}}']
)
def test_a_report_for_the_card_is_checked(content: bytes, repository: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_bytes(content)
    assert f"{report} is not a report of" in refused("card", "d0", "--repository", repository, "--report", report)


def test_a_card_has_ap_by_size(repository: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"ap50": 0.5, "by_size": {"small": {"faces": 3, "ap50": 0.25, "ap": None}}}))
    command = ["card", "d0", "--repository", str(repository), "--report", str(report)]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert "| small | 3 | 0.250 | - |" in (repository / "d0" / "CARD.md").read_text()


def test_a_table_that_is_none_is_named(repository: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    table.write_text("{")
    assert f"{table} is no table" in refused("accuracy", "d0", "--repository", repository, "--measured", table)
    row = {"ours": True, "detector": "d0", "long_side": 64, "ap50": 7, "ap": 1}
    table.write_text(json.dumps({"data": "f", "split": "dev", "protocol": "wider", "rows": [row]}))
    assert "not a table of" in refused("accuracy", "d0", "--repository", repository, "--measured", table)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["accuracy", "d0", "--long-sides", "64,700"], "no input of long side 700; it has 64, 128"),
        (["accuracy", "d0", "--limit", "-1"], "--limit"),
        (["accuracy", "d0", "--long-sides", "64", "--report", "r.json"], "--report is of long side 640"),
        (["quantize", "d0", "--long-sides", "700"], "no input of long side 700"),
        (["quantize", "d0", "--pictures", "0"], "--pictures"),
        (["all", "--runs", ".", "--long-sides", "640,700"], "there is no 700; there are 256,320"),
        (["profile", "--threads", "100000"], "--threads"),
        (["profile", "--out", "."], "is a folder"),
        (["nms", "d0", "--out", "."], "is a folder"),
        (["nms", "d0", "--long-sides", "700"], "multiples of 32 from 192"),
        (["nms", "d0", "--long-sides", "32"], "multiples of 32 from 192"),
        (["nms", "d0", "--splits", ","], "--splits takes names"),
        (["verify", "--checkpoint", "x.pt"], "both --checkpoint and --pictures"),
        (["verify", "--checkpoint", "x.pt", "--pictures", "x.png"], "several members"),
    ],
)
def test_options_are_checked_first(arguments: list[str], said: str, repository: Path, tmp_path: Path) -> None:
    folder = [] if arguments[0] in ("profile", "verify") else ["--data", str(tmp_path / "no data")]
    assert said in refused(*arguments, "--repository", repository, *folder)


def test_a_damaged_file_is_not_measured(repository: Path, tmp_path: Path) -> None:
    path = repository / "d0" / load_manifest(repository / "d0" / "manifest.json").files[0].path
    path.write_bytes(path.read_bytes() + b" ")
    for command in ("accuracy", "quantize"):
        said = refused(command, "d0", "--repository", repository, "--long-sides", "64", "--data", tmp_path)
        assert f"{path}: " in said
        assert "the manifest says" in said


def test_a_file_that_is_no_onnx_is_named(repository: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "dev" / "images").mkdir(parents=True)
    (root / "split").mkdir()
    Image.new("RGB", (40, 30)).save(root / "dev" / "images" / "a.png")
    (root / "split" / "dev_bbx_gt.txt").write_text("a.png\n1\n5 5 9 9 0 0 0 0 0 0\n")
    (tmp_path / "x.onnx").write_bytes(b"\xff" * 99)
    said = refused("nms", tmp_path / "x.onnx", "--data", root, "--repository", repository, "--photos", 1)
    assert f"{tmp_path / 'x.onnx'} is no ONNX file" in said


def test_ap_on_a_part_of_a_split_leaves_that_of_the_whole(repository: Path, tmp_path: Path) -> None:
    root = tmp_path / "drawn"
    (root / "dev" / "images").mkdir(parents=True)
    (root / "split").mkdir()
    lines = []
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(root / "dev" / "images" / name)
        lines += [name, "1", "5 5 9 9 0 0 0 0 0 0"]
    (root / "split" / "dev_bbx_gt.txt").write_text("\n".join(lines) + "\n")
    manifest = repository / "d0" / "manifest.json"
    before = load_manifest(manifest).accuracy
    command = ["accuracy", "d0", "--repository", str(repository), "--data", str(root), "--dataset", "drawn"]
    result = CliRunner().invoke(app, [*command, "--limit", "1", "--long-sides", "64"])
    assert result.exit_code == 0, result.output
    after = load_manifest(manifest).accuracy
    assert set(before) < set(after)
    assert {row.split for row in set(after) - set(before)} == {"dev:1"}


@pytest.mark.parametrize("command", ["all", "onnx", "quantize", "accuracy", "tensorrt"])
def test_a_repository_takes_one_export_at_a_time(
    command: str, repository: Path, checkpoint: Path, tmp_path: Path
) -> None:
    names = {"all": ["--runs", str(tmp_path)], "onnx": [str(checkpoint), "--member", "d0"]}
    before = load_manifest(repository / "d0" / "manifest.json")
    other = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        said = refused(command, *names.get(command, ["d0"]), "--repository", repository)
    finally:
        os.close(other)
    assert "another process exports into" in said
    assert load_manifest(repository / "d0" / "manifest.json") == before


def test_a_member_exported_again_replaces_the_one_put_aside(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    milliseconds = {"d0": 30.0, "d1": 10.0}  # AP.50 at 128: 0.6, 0.7

    def measured(engine: Engine, size: InputSize, seconds: float) -> Timing:
        ms = milliseconds[engine.variant]
        return Timing(variant=engine.variant, height=size.height, width=size.width, p50_ms=ms, p99_ms=ms, runs=3)

    monkeypatch.setattr(shipping, "LONG_SIDE", 128)
    monkeypatch.setattr(shipping, "measure_engine", measured)
    aside = repository / ".unshipped" / "d0"
    shutil.copytree(repository / "d0", aside)
    (aside / "old").touch()
    assert [folder.name for folder in member_folders(repository)] == ["d0", "d1"]
    assert list(apply_rule(repository, "drawn", "dev")) == ["d0"]
    assert not (repository / "d0").exists()
    assert not (aside / "old").exists()
    shutil.copytree(aside, repository / "d0")
    milliseconds["d0"] = 5.0
    assert apply_rule(repository, "drawn", "dev") == {}
    assert (repository / "d0" / "manifest.json").is_file()


def test_a_peer_that_cannot_run_costs_nothing_of_the_others() -> None:
    class Broken:
        name, long_side, fingerprint = "broken", 64, "broken"

        def __call__(self, pixels: NDArray[np.uint8]) -> Any:
            raise AssertionError("not this shape")

    told: list[str] = []

    def damaged() -> Any:
        raise RuntimeError("bad file")

    sizes = [InputSize(height=64, width=64), InputSize(height=96, width=96)]
    photo = np.zeros((30, 40, 3), np.uint8)
    assert profile_peers(lambda _: [("broken", Broken), ("damaged", damaged)], sizes, 5, photo, told.append) == []
    assert told == ["broken is left out: not this shape", "damaged is left out: bad file"]
