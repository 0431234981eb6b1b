"""`python -m export all`: resumed, verified, published by renaming; what is slower and no better is put aside."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from export import family, shipping, staging
from export.__main__ import app
from export.build import Origin
from export.family import Job, Options, export_member, export_untrained
from export.fresh import drawn_picture, fresh_detector
from export.index import TABLE_7
from export.member import input_sizes
from export.shipping import Standing, apply_rule, best_of, not_worth_it
from export.staging import Record, Stage
from service.engines.base import Engine
from service.profiling import Timing
from service.repository.manifest import Accuracy, InputSize
from service.repository.store import RepositoryError, load_manifest, load_repository, sha256_of
from tests.service.fake_model import write_fake_repository
from training.family import MEMBERS
from training.models.detector import DetectorConfig
from training.supernet.path import SinglePath

TINY = SinglePath("resnet18", (False,), 1, 16)
Pixels = NDArray[np.uint8]


@pytest.fixture
def data(tmp_path: Path, crowd: Pixels) -> Path:
    """Photos in the short layout, two to train on and two to measure on."""
    root = tmp_path / "data"
    for split in ("train", "dev"):
        (root / split / "images").mkdir(parents=True)
        lines = []
        for name, at in (("a.jpg", 0), ("b.jpg", 256)):
            Image.fromarray(crowd[at : at + 300, :400]).save(root / split / "images" / name, quality=95)
            lines += [name, "1", "85 30 53 70 0 0 0 0 0 0"]
        (root / "split").mkdir(exist_ok=True)
        (root / "split" / f"{split}_bbx_gt.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def options(data: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """One long side, the smallest that has 2000 candidates, so that all twelve sizes need not be run."""
    monkeypatch.setattr("export.build.input_sizes", lambda: input_sizes((192,)))
    return Options(data=data, long_sides=(192,), calibration=2, compared=1, threads=1)


@pytest.fixture
def job(checkpoint: Path) -> Job:
    return Job("tiny", TINY, checkpoint, Origin())


class Calls:
    """Counts calls of a function, and fails at one of them."""

    def __init__(self, run: Callable[..., Any], fail_at: int = 0) -> None:
        self.run, self.fail_at, self.count = run, fail_at, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.count += 1
        if self.count == self.fail_at:
            raise KeyboardInterrupt
        return self.run(*arguments, **named)


def test_an_interrupted_export_goes_on_and_repeats_nothing(
    job: Job, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models"
    graphs, scores = Calls(family.export_checkpoint), Calls(family.score, fail_at=2)
    calibrated = Calls(family.quantize)
    for name, calls in (("export_checkpoint", graphs), ("score", scores), ("quantize", calibrated)):
        monkeypatch.setattr(family, name, calls)
    monkeypatch.setattr(family, "worth_shipping", lambda *_: True)
    with pytest.raises(KeyboardInterrupt):
        export_member(job, repository, options, print)
    stage = repository / ".staging" / "tiny"
    assert not (repository / "tiny").exists()
    with pytest.raises(RepositoryError, match="holds no"):  # the service sees nothing of it
        load_repository(repository)
    # What a process leaves that is killed while it writes.
    (stage / ".tiny.onnx.999").write_bytes(b"half a file")
    assert export_member(job, repository, options, print)
    # 1 pass, then the one that failed, then that of INT8 alone; AP comes from the record, not from a further pass.
    assert (graphs.count, calibrated.count, scores.count) == (1, 1, 3)
    assert not stage.parent.exists()
    names = {path.name for path in (repository / "tiny").iterdir()}
    assert names == {"tiny.onnx", "tiny-int8.onnx", "manifest.json", "CARD.md", ".export.json"}
    manifest = load_manifest(repository / "tiny" / "manifest.json")
    assert job.checkpoint is not None
    assert manifest.provenance.checkpoint_sha256 == sha256_of(job.checkpoint)
    assert [(row.variant, row.split, row.long_side) for row in manifest.accuracy] == [
        ("tiny", "dev", 192), ("tiny-int8", "dev", 192),
    ]  # fmt: skip
    load_repository(repository)

    # Again: nothing is done. With a damaged file: all of it is done again.
    assert not export_member(job, repository, options, print)
    assert (graphs.count, scores.count) == (1, 3)
    # A further variant joins what is there, and is on the card.
    wider = dataclasses.replace(options, fp16=True)
    with monkeypatch.context() as broken:
        broken.setattr(family, "contract_faults", lambda *_, **__: ["tiny-fp16.onnx: scores do not descend"])
        with pytest.raises(ValueError, match="scores do not descend"):
            export_member(job, repository, wider, print)
    assert "tiny-fp16" not in (repository / "tiny" / "manifest.json").read_text()
    said: list[str] = []
    assert export_member(job, repository, wider, said.append)
    assert any(re.match(r"tiny-fp16: \d+ detections compared", text) for text in said)
    assert (graphs.count, calibrated.count, scores.count) == (3, 1, 3)
    assert "| tiny-fp16 |" in (repository / "tiny" / "CARD.md").read_text()
    assert len(load_manifest(repository / "tiny" / "manifest.json").accuracy) == 2
    (repository / "tiny" / "tiny.onnx").write_bytes(b"damaged")
    assert export_member(job, repository, options, print)
    assert (graphs.count, calibrated.count) == (4, 2)
    # Photos of another number are another task.
    assert family._task(job, options) != family._task(job, dataclasses.replace(options, limit=1))


def test_a_stage_is_taken_up_only_by_its_own_task(tmp_path: Path) -> None:
    first = Stage(tmp_path, "d1", "task one")
    (first.folder / "d1.onnx").write_bytes(b"graph")
    first.mark("graph")
    assert Stage(tmp_path, "d1", "task one").record.done == ["graph"]
    other = Stage(tmp_path, "d1", "task two")
    assert other.record.done == []
    assert not (other.folder / "d1.onnx").exists()
    (other.folder / ".export.json").write_text('{"task": "task t')  # half a record says nothing
    (other.folder / "d1.onnx").write_bytes(b"graph")
    assert Stage(tmp_path, "d1", "task two").record == Record(task="task two")
    assert not (other.folder / "d1.onnx").exists()


def test_publishing_replaces_the_former_member_and_survives_a_kill_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fake_repository(tmp_path, ("d1",))
    shutil.copytree(tmp_path / "d1", tmp_path / ".unshipped" / "d1")
    stage = Stage(tmp_path, "d1", "new")
    (stage.folder / "new").touch()
    stage.mark("card")
    moved = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path == stage.folder:
            raise KeyboardInterrupt
        return moved(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.publish()
    monkeypatch.setattr(Path, "rename", moved)
    again = Stage(tmp_path, "d1", "new")
    assert again.record.done == ["card"]
    again.publish()
    assert (tmp_path / "d1" / "new").exists()
    assert not (tmp_path / "d1" / "manifest.json").exists()
    assert not (tmp_path / ".unshipped" / "d1").exists()
    assert not (tmp_path / staging.STAGING).exists()


def test_a_checkpoint_of_another_member_is_refused(job: Job, options: Options, tmp_path: Path) -> None:
    wrong = dataclasses.replace(job, member="d3", path=MEMBERS["d3"])
    with pytest.raises(ValueError, match=r"is no d3: it holds resnet18, fpn, .*R50-FAE-Hx3-192"):
        export_member(wrong, tmp_path / "models", options, print)
    assert not (tmp_path / "models" / "d3").exists()


def test_the_rule_by_hand() -> None:
    rows = [
        Standing("d0", "d0", 30, 0.80),
        Standing("d0", "d0-int8", 10, 0.80),  # as good and faster: the best of d0
        Standing("d1", "d1", 20, 0.80),  # slower than d0's best and not better
        Standing("d2", "d2", 40, 0.90),  # slower and better
        Standing("d2", "d2-int8", 15, 0.79),  # not the best of d2
        Standing("d3", "d3", 50, 0.85),  # slower than d2 and worse
        Standing("d4", "d4", 40, 0.88),  # worse, but no slower than d2
        Standing("d5", "d5", 5, 0.10),  # the fastest may be as bad as it likes
    ]
    assert [one.variant for one in best_of(rows)] == ["d0-int8", "d1", "d2", "d3", "d4", "d5"]
    reasons = not_worth_it(rows)
    assert sorted(reasons) == ["d1", "d3"]
    assert reasons["d1"].endswith("d1 has AP.50 0.8000 in 20.0 ms, and d0-int8 has 0.8000 in 10.0 ms")
    assert "d2 has 0.9000 in 40.0 ms" in reasons["d3"]
    assert not_worth_it([]) == {}


def test_members_are_put_aside_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_fake_repository(tmp_path / "models", ("d0", "d1", "d2"))  # AP.50 at 128: 0.6, 0.7, 0.8
    path = root / "d2" / "manifest.json"
    unmeasured = load_manifest(path).model_copy(update={"accuracy": ()})
    path.write_text(unmeasured.model_dump_json())
    milliseconds = {"d0": 30.0, "d1": 10.0}
    asked = []

    def measured(engine: Engine, size: InputSize, seconds: float) -> Timing:
        asked.append((engine.variant, str(size)))
        ms = milliseconds[engine.variant]
        return Timing(variant=engine.variant, height=size.height, width=size.width, p50_ms=ms, p99_ms=ms, runs=3)

    monkeypatch.setattr(shipping, "LONG_SIDE", 128)
    monkeypatch.setattr(shipping, "measure_engine", measured)
    reasons = apply_rule(root, "drawn", "dev")
    assert list(reasons) == ["d0"]
    assert asked == [("d0", "64x128"), ("d1", "64x128")]
    assert sorted(path.name for path in root.iterdir()) == [".unshipped", "d1", "d2"]
    assert [variant.name for variant in load_repository(root).variants] == ["d1", "d2"]
    assert (root / ".unshipped" / "d0" / "WHY.txt").read_text().strip() == reasons["d0"]
    listed = CliRunner().invoke(app, ["list", "--repository", str(root)])
    assert reasons["d0"] in listed.output

    milliseconds["d1"] = 50.0
    assert apply_rule(root, "drawn", "dev") == {}
    assert sorted(path.name for path in root.iterdir()) == ["d0", "d1", "d2"]
    assert not (root / "d0" / "WHY.txt").exists()
    assert apply_rule(root, "drawn", "other photos") == {}  # nothing to compare


def test_fresh_weights_are_exported_compared_and_never_served(tmp_path: Path) -> None:
    job = Job("tiny", TINY, None, Origin())
    said: list[str] = []
    root = tmp_path / "untrained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.build.input_sizes", lambda: input_sizes((320,)))
        assert export_untrained(job, root, said.append)
        assert not export_untrained(job, root, said.append)
    assert len(said) == 1
    assert int(said[0].split()[1]) > 20  # detections compared
    manifest = load_manifest(root / "tiny" / "manifest.json")
    assert not manifest.trained
    assert manifest.architecture.single_path == "R18-FA-Hx1-16"
    assert manifest.architecture.genotype is not None
    assert manifest.accuracy == ()
    with pytest.raises(RepositoryError, match="tiny has fresh weights, for timing only"):
        load_repository(root)
    assert len(load_repository(root, untrained=True).variants) == 1
    listed = CliRunner().invoke(app, ["list", "--repository", str(root)])
    assert "FRESH WEIGHTS" in listed.output


def test_trained_and_fresh_members_do_not_mix(tmp_path: Path) -> None:
    root = write_fake_repository(tmp_path / "models", ("d0",))
    refused = CliRunner().invoke(app, ["all", "--untrained", "--runs", str(tmp_path), "--repository", str(root)])
    assert refused.exit_code == 2
    assert "holds trained members" in refused.output
    path = root / "d0" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "trained": False}))
    refused = CliRunner().invoke(app, ["all", "--runs", str(tmp_path), "--repository", str(root)])
    assert refused.exit_code == 2
    assert "holds fresh weights" in refused.output


def test_all_names_what_is_not_trained_and_unknown(tmp_path: Path) -> None:
    places = ["--runs", str(tmp_path / "runs"), "--repository", str(tmp_path / "models")]
    nowhere = CliRunner().invoke(app, ["all", "--members", "d3,d5", *places])
    assert nowhere.exit_code == 2
    assert "--runs: there is no folder" in nowhere.output
    (tmp_path / "runs").mkdir()
    found = CliRunner().invoke(app, ["all", "--members", "d3,d5", *places])
    assert found.exit_code == 0, found.output
    assert found.stdout.splitlines() == ["d3: not trained", "d5: not trained"]
    unknown = CliRunner().invoke(app, ["all", "--members", "d9", *places])
    assert unknown.exit_code == 2
    assert "there is no d9" in unknown.output


def test_a_machine_family_has_its_budget_and_names_of_its_own(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = {"name": "m0", "path": "R18-FA-Hx1-16", "budget_ms": 30.0, "latency_ms": 28.0, "ap50": 0.5}
    content = {
        "target": "onnxruntime-cpu", "hardware": "a machine x2", "size": [480, 640], "supernet": "s.pt", "seed": 0,
        "members": [member],
    }  # fmt: skip
    file = tmp_path / "family.json"
    file.write_text(json.dumps(content))
    runs = tmp_path / "runs" / "m0"
    runs.mkdir(parents=True)
    shutil.copy(checkpoint, runs / "best.pt")
    jobs: list[Job] = []
    monkeypatch.setattr(family, "export_member", lambda job, *_: jobs.append(job) or True)
    monkeypatch.setattr(shipping, "apply_rule", lambda *_: {})
    arguments = ["all", "--runs", str(runs.parent), "--repository", str(tmp_path / "models"), "--family", str(file)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert [(job.member, str(job.path), job.checkpoint) for job in jobs] == [("m0", "R18-FA-Hx1-16", runs / "best.pt")]
    assert jobs[0].origin == Origin("machine", 30.0, "a machine x2, onnxruntime-cpu")
    file.write_text(json.dumps({**content, "members": [{**member, "name": "d1"}]}))
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "d1 would replace Table 7's members" in refused.output


def test_a_fault_of_one_member_does_not_hold_up_the_others(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("d0", "d1"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "d0" / "best.pt").write_bytes(b"not a checkpoint")
    shutil.copy(checkpoint, tmp_path / "runs" / "d1" / "best.pt")
    arguments = ["all", "--members", "d0,d1", "--runs", str(tmp_path / "runs"), "--repository", str(tmp_path / "m")]
    result = CliRunner().invoke(app, [*arguments, "--long-sides", "256"])
    assert result.exit_code == 2
    assert "d0/best.pt cannot be read as a checkpoint" in result.output
    assert "d1/best.pt is no d1" in result.output  # 16 channels are not d1's 128
    assert "2 member(s) failed" in result.output


def test_the_index_has_table_7() -> None:
    assert dict(TABLE_7) == {name: str(path) for name, path in MEMBERS.items()}


def test_fresh_weights_are_the_same_for_a_seed_and_tame() -> None:
    import torch

    from training.models.detector import normalize

    state = torch.random.get_rng_state()
    first, again, other = (fresh_detector(DetectorConfig(channels=16), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [one.head.cls_logits.weight for one in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not first.training
    with torch.no_grad():
        picture = torch.from_numpy(drawn_picture(256, 320, 5)).permute(2, 0, 1)[None]
        scores = first(normalize(picture)).logits.sigmoid()
    above = float((scores > 0.05).float().mean())
    assert 0.005 < above < 0.5


def test_rows_of_a_part_of_a_split_are_not_those_of_the_split(options: Options) -> None:
    row = Accuracy(variant="d0", dataset="faces", split="dev", protocol="p", long_side=640, ap50=0.5, ap=0.2)
    part = dataclasses.replace(options, limit=50)
    assert (options.split_name, part.split_name) == ("dev", "dev:50")
    assert row.model_copy(update={"split": part.split_name}).split != row.split
