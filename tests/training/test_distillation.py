"""A teacher's part of the loss: its value, its gradients, and runs that have one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from training.__main__ import app
from training.ablation.changes import changes
from training.ablation.command import KINDS, _choose
from training.config import CropSize, OptimConfig, TrainConfig
from training.data.dataset import CropDataset, DataConfig, load_training_set
from training.engine import checkpoint
from training.engine.distributed import World
from training.engine.loop import RunOptions, train, train_step
from training.engine.teacher import load_teacher, taught_by, teacher_name
from training.engine.warm_start import start_from
from training.models import Detector, DetectorConfig, Output, build_detector
from training.models.anchors import AnchorConfig
from training.models.boxes import encode
from training.models.distillation import DistillConfig, distillation_loss
from training.models.losses import Targets

ROOT = Path(__file__).parents[2]
WORLD = World(0, 1, torch.device("cpu"))
ANCHORS = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
TEACHER = DetectorConfig(channels=16)


def logit(score: float) -> float:
    return math.log(score / (1 - score))


def said(scores: tuple[float, float], boxes: Tensor, quality: float | None = None) -> Output:
    """What a detector says of two anchors of one picture."""
    logits = torch.tensor([[logit(s) for s in scores]], requires_grad=True)
    deltas = encode(boxes, ANCHORS)[None].requires_grad_()
    branch = None if quality is None else torch.full((1, 2), logit(quality), requires_grad=True)
    return Output(logits, deltas, ANCHORS, (2,), branch)


def test_two_anchors_by_hand() -> None:
    teacher = said((0.8, 0.05), ANCHORS)
    shifted = ANCHORS + torch.tensor([[5.0, 0.0, 5.0, 0.0], [3.0, 0.0, 3.0, 0.0]])
    student = said((0.5, 0.25), shifted)
    score = 0.3**2 * math.log(2) + 0.2**2 * -(0.05 * math.log(0.25) + 0.95 * math.log(0.75))
    # The second anchor's teacher is too unsure for its box. Of the first, halves overlap: IoU 50 / 150, and the
    # enclosing box is 15 x 10, so that DIoU takes off 25 / 325 and GIoU nothing.
    giou = 1 - 1 / 3
    for config, box in (
        (DistillConfig(box="diou"), giou + 25 / 325),
        (DistillConfig(box="giou"), giou),
        (DistillConfig(box="giou", box_weight=3.0, score_weight=2.0), 3 * giou),
    ):
        taught = distillation_loss(student, teacher, config)
        # The sum of the teacher's scores without the background's, 0.8, is less than one face, and is taken as one.
        assert taught.score.item() == pytest.approx(config.score_weight * score, rel=1e-4)
        assert taught.box.item() == pytest.approx(box, rel=1e-4)
    both = distillation_loss(student, teacher, DistillConfig(box="giou", min_score=0.01))
    other = 1 - 70 / 130
    assert both.box.item() == pytest.approx((0.8 * giou + 0.05 * other) / 0.85, rel=1e-4)


def test_the_score_is_divided_by_what_the_teacher_sees_not_by_the_background() -> None:
    student, teacher = said((0.5, 0.5), ANCHORS), said((0.9, 0.9), ANCHORS)
    expected = 2 * 0.4**2 * math.log(2) / 1.8
    assert distillation_loss(student, teacher, DistillConfig()).score.item() == pytest.approx(expected, rel=1e-4)
    student, teacher = (
        Output(one.logits.repeat(1, 3), one.deltas.repeat(1, 3, 1), ANCHORS.repeat(3, 1)) for one in (
            said((0.6, 0.04), ANCHORS), said((0.8, 0.04), ANCHORS)
        )
    )  # fmt: skip
    expected = 3 * 0.2**2 * -(0.8 * math.log(0.6) + 0.2 * math.log(0.4)) / 2.4
    assert distillation_loss(student, teacher, DistillConfig()).score.item() == pytest.approx(expected, rel=1e-4)


def test_who_agrees_has_nothing_to_learn() -> None:
    boxes = ANCHORS + 2.0
    student, teacher = said((0.7, 0.3), boxes), said((0.7, 0.3), boxes)
    taught = distillation_loss(student, teacher, DistillConfig())
    assert taught.score.item() == pytest.approx(0.0, abs=1e-10)
    assert taught.box.item() == pytest.approx(0.0, abs=1e-5)
    torch.autograd.backward(taught.score + taught.box)
    assert student.logits.grad is not None
    assert student.logits.grad.abs().max() < 1e-6


def test_only_the_student_is_taught_and_towards_the_teacher() -> None:
    student, teacher = said((0.5, 0.5), ANCHORS + 1.0), said((0.9, 0.1), ANCHORS)
    taught = distillation_loss(student, teacher, DistillConfig(min_score=0.5))
    torch.autograd.backward(taught.score + taught.box)
    assert teacher.logits.grad is None
    assert teacher.deltas.grad is None
    assert student.logits.grad is not None
    assert student.deltas.grad is not None
    assert student.logits.grad[0, 0] < 0 < student.logits.grad[0, 1]
    assert (student.deltas.grad[0, 0, :2] > 0).all()  # the box lies too far to the right and below
    assert not student.deltas.grad[0, 1].any()


def test_a_teacher_that_sees_nothing_leaves_boxes_alone() -> None:
    student = said((0.5, 0.5), ANCHORS + 1.0)
    taught = distillation_loss(student, said((0.01, 0.01), ANCHORS), DistillConfig())
    torch.autograd.backward(taught.score + taught.box)
    assert taught.box.item() == 0.0
    assert student.deltas.grad is None or not student.deltas.grad.any()


def test_a_predicted_iou_is_part_of_what_is_taught_unless_the_student_has_one() -> None:
    teacher = said((0.64, 0.64), ANCHORS, quality=0.36)  # ranks by sqrt(0.64 * 0.36) = 0.48
    assert distillation_loss(said((0.48, 0.48), ANCHORS), teacher, DistillConfig()).score.item() < 1e-9
    like = said((0.64, 0.64), ANCHORS, quality=0.5)
    assert distillation_loss(like, teacher, DistillConfig()).score.item() < 1e-9


def test_other_anchors_are_refused() -> None:
    one = said((0.5, 0.5), ANCHORS)
    for anchors, words in ((ANCHORS[:1], "1 and 2"), (ANCHORS + torch.tensor([[0.0], [4.0]]), "number 1")):
        with pytest.raises(ValueError, match=f"the same anchors: {words}"):
            distillation_loss(one, one._replace(anchors=anchors), DistillConfig())
    with pytest.raises(ValueError, match="the same pictures"):
        distillation_loss(one, one._replace(logits=torch.zeros(2, 2)), DistillConfig())


def config(epochs: float) -> TrainConfig:
    return TrainConfig(
        recipe="test",
        model=DetectorConfig(channels=8),
        optim=OptimConfig(name="adamw", lr=1e-3, warmup_steps=2),
        sizes=(CropSize(64, 2),),
        epochs=epochs,
        precision="fp32",
    )


def saved_teacher(path: Path, model: DetectorConfig = TEACHER) -> Path:
    torch.manual_seed(3)
    content = {
        "config": {"model": checkpoint.as_plain(model), "recipe": "large"},
        "ema": build_detector(model).state_dict(),
    }
    checkpoint.save(path, content)
    return path


@pytest.fixture
def photos(tiny_wider: Path, tmp_path: Path) -> CropDataset:
    return load_training_set(tiny_wider, "train", tmp_path / "cache", DataConfig())


def no_validation(_model: Detector) -> dict[str, float]:
    return {"ap50": 0.5}


def test_a_taught_run_trains_resumes_and_names_its_teacher(photos: CropDataset, tmp_path: Path) -> None:
    teacher = saved_teacher(tmp_path / "d4" / "best.pt")
    run, plain = tmp_path / "run", tmp_path / "plain"
    options = RunOptions(run, workers=0, teacher=teacher)
    for epochs, step in ((1.0, 4), (2.0, 7)):
        progress = train(taught_by(config(epochs), teacher), photos, options, WORLD, no_validation)
        assert progress.step == step
        content = checkpoint.load(run / "last.pt")
        assert [s["recipe"] for s in content["stages"]] == [f"teacher {teacher_name(teacher)}"]
        assert content["stages"][0]["images"] == 0
    assert teacher_name(teacher).startswith("d4/best.pt, sha256 ")
    train(config(2.0), photos, RunOptions(plain, workers=0), WORLD, no_validation)
    one, two = (checkpoint.load(folder / "last.pt")["model"] for folder in (run, plain))
    first = next(iter(one))
    assert not torch.equal(one[first], two[first])
    with pytest.raises(ValueError, match="another teacher"):
        train(config(2.0), photos, RunOptions(run, workers=0), WORLD, no_validation)
    other = saved_teacher(tmp_path / "d5" / "best.pt", DetectorConfig(channels=24))
    options = dataclasses.replace(options, teacher=other)
    with pytest.raises(ValueError, match="another teacher"):
        train(taught_by(config(2.0), other), photos, options, WORLD, no_validation)


def test_a_checkpoint_from_before_there_were_teachers_goes_on(photos: CropDataset, tmp_path: Path) -> None:
    options = RunOptions(tmp_path / "run", workers=0)
    train(config(1.0), photos, options, WORLD, no_validation)
    content = checkpoint.load(tmp_path / "run" / "last.pt")
    del content["config"]["distill"]
    checkpoint.save(tmp_path / "run" / "last.pt", content)
    assert train(config(2.0), photos, options, WORLD, no_validation).step == 7


def test_a_config_and_its_teacher_go_together(photos: CropDataset, tmp_path: Path) -> None:
    teacher = saved_teacher(tmp_path / "d4" / "best.pt")
    for one, path, words in (
        (taught_by(config(1.0), teacher), None, "no teacher"),
        (config(1.0), teacher, "not learn"),
    ):
        with pytest.raises(ValueError, match=words):
            train(one, photos, RunOptions(tmp_path / "run", workers=0, teacher=path), WORLD, no_validation)


def test_a_step_leaves_the_teacher_as_it_was(tmp_path: Path) -> None:
    path = saved_teacher(tmp_path / "d4" / "best.pt")
    taught = taught_by(config(1.0), path)
    teacher = load_teacher(path, taught.model)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    student = build_detector(taught.model)
    optimizer = torch.optim.SGD(student.parameters(), 0.01)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    targets = [Targets(torch.tensor([[8.0, 8.0, 40.0, 50.0]]), torch.zeros(0, 4)) for _ in range(2)]
    terms = train_step(
        student, optimizer, taught, images, targets, torch.Generator().manual_seed(0), WORLD.device, teacher=teacher
    )
    assert {"cls", "box", "teacher_score", "teacher_box", "grad"} <= set(terms)
    assert terms["teacher_score"] > 0
    assert not teacher.training
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_teachers_that_cannot_teach_are_named(tmp_path: Path) -> None:
    student = DetectorConfig(channels=8)
    other = saved_teacher(tmp_path / "other.pt", DetectorConfig(channels=8, anchors=AnchorConfig(size_factor=2.0)))
    with pytest.raises(ValueError, match=r"other\.pt cannot teach .* anchors"):
        load_teacher(other, student)
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        teacher_name(tmp_path / "absent.pt")
    (tmp_path / "lonely.onnx").write_bytes(b"graph")
    with pytest.raises(ValueError, match=r"lonely\.onnx needs the manifest"):
        load_teacher(tmp_path / "lonely.onnx", student)
    with pytest.raises(ValueError, match="full-precision"):
        load_teacher(ROOT / "models" / "d0" / "d0-int8.onnx", student)


def test_a_shipped_member_can_teach() -> None:
    """It says what the same weights say as a start for training, whatever its norms were measured on."""
    path = ROOT / "models" / "d0" / "d0.onnx"
    teacher, started = load_teacher(path, DetectorConfig(channels=8)), build_detector(DetectorConfig())
    generator = torch.Generator().manual_seed(4)
    start_from(path, started, DetectorConfig(), [torch.randn(2, 3, 96, 96, generator=generator)])
    x = torch.randn(1, 3, 96, 128, generator=generator)
    with torch.no_grad():
        one, two = teacher(x), started.eval()(x)
    assert not any(p.requires_grad for p in teacher.parameters())
    torch.testing.assert_close(one.logits, two.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(one.deltas, two.deltas, rtol=1e-3, atol=1e-3)


def ablate(*args: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["ablate", *args])
    return done.exit_code, done.output


def test_the_ablations_row_needs_a_teacher(tiny_wider: Path, tmp_path: Path) -> None:
    assert changes(KINDS)["distil"].taught
    teacher = saved_teacher(tmp_path / "d4" / "best.pt")
    shared = (
        "--data", str(tiny_wider), "--out", str(tmp_path / "t"), "--cache", str(tmp_path / "cache"), "--images", "2",
        "--side", "64", "--batch", "2", "--long-side", "64", "--device", "cpu", "--workers", "0", "--seeds", "0",
    )  # fmt: skip
    code, text = ablate(*shared, "--rows", "distil")
    assert code == 2
    assert "'distil' needs a teacher" in text
    code, text = ablate(*shared, "--rows", "base")
    assert code == 0, text
    code, text = ablate(*shared, "--rows", "distil", "--teacher", str(teacher))
    assert code == 0, text
    assert "| distil |" in (tmp_path / "t" / "table.md").read_text()
    assert teacher_name(teacher) in (tmp_path / "t" / "table.md").read_text()
    other = saved_teacher(tmp_path / "d5" / "best.pt")
    code, text = ablate(*shared, "--rows", "distil", "--teacher", str(other))
    assert code == 2
    assert "another budget" in text


def test_groups_of_rows_leave_it_out_without_a_teacher() -> None:
    known = changes(KINDS)
    for group in ("recipe", "all"):
        assert "distil" not in {row.name for row in _choose(group, known, False)}
        assert "distil" in {row.name for row in _choose(group, known, True)}
