"""Generic detectors: COCO's format, the three detectors with either neck, and runs that are cut off."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from torch import Tensor, nn
from torchvision.models import resnet18
from typer.testing import CliRunner

from training.__main__ import app
from training.generic.data import BatchOrder, CocoDataset, Key, Picture, Sample, read_annotations
from training.generic.detectors import DETECTORS, GenericConfig, norm_groups
from training.generic.train import Place, RunSettings, evaluate, optim_config, train
from training.models.genotype import (
    AutoFAEGenotype,
    Candidate,
    EnhancementCell,
    FusionCell,
    Node,
    Provenance,
)

FACE, PERSON = 17, 3  # category ids, neither contiguous nor in this order
FACE_BOX, PERSON_BOX = (174, 66, 272, 198), (20, 20, 460, 512)  # in the 512 x 512 picture
LEVELS = (2, 3, 4, 5, 6, 7)


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root/pictures and root/{train,val}.json: scaled copies of one photograph, two of them tall, one a blank."""
    root = tmp_path_factory.mktemp("coco")
    (root / "pictures").mkdir()
    source = Image.fromarray(astronaut())  # type: ignore[no-untyped-call]
    for split, sizes in (
        ("train", ((96, 96), (112, 96), (128, 112), (96, 128), (80, 120))),
        ("val", ((96, 96), (128, 120))),
    ):
        content: dict[str, list[dict[str, Any]]] = {
            "images": [], "annotations": [], "categories": [{"id": FACE, "name": "face"}, {"id": PERSON}],
        }  # fmt: skip
        for at, (width, height) in enumerate(sizes):
            image = 100 * at + 7
            source.resize((width, height)).save(root / "pictures" / f"{split}-{at}.png")
            content["images"].append({"id": image, "file_name": f"{split}-{at}.png", "width": width, "height": height})
            for category, box in ((FACE, FACE_BOX), (PERSON, PERSON_BOX)):
                x1, y1, x2, y2 = (v * s / 512 for v, s in zip(box, (width, height) * 2, strict=True))
                add(content, image, category, [x1, y1, x2 - x1, y2 - y1])
        add(content, 7, PERSON, [0, 0, 90, 90], iscrowd=1, segmentation={"counts": [1], "size": [1, 1]})
        Image.new("RGB", (64, 48), (90, 90, 90)).save(root / "pictures" / f"{split}-blank.png")
        content["images"].append({"id": 1, "file_name": f"{split}-blank.png", "width": 64, "height": 48})
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def add(content: dict[str, list[dict[str, Any]]], image: int, category: int, box: list[float], **more: Any) -> None:
    row = {"id": len(content["annotations"]) + 1, "image_id": image, "category_id": category, "bbox": box}
    content["annotations"].append({"area": box[2] * box[3], "iscrowd": 0, **row, **more})


def genotype() -> AutoFAEGenotype:
    """The next level but one and the next above, the next below; two operations a level."""
    down, up, cells = [], [], []
    nodes = (Node(node=1, input=0, operation="conv3x3"), Node(node=2, input=1, operation="conv1x5"))
    for level in LEVELS:
        above = tuple(Candidate(level=source, alpha=0.5) for source in (level + 1, level + 2) if source <= 7)
        below = (Candidate(level=level - 1, alpha=1.0),) if level > 2 else ()
        down.append(FusionCell(level=level, candidates=above))
        up.append(FusionCell(level=level, candidates=below))
        cells.append(EnhancementCell(level=level, nodes=nodes))
    return AutoFAEGenotype(
        levels=LEVELS, top_down=tuple(reversed(down)), bottom_up=tuple(up), enhancement=tuple(cells),
        provenance=Provenance(method="hand"),
    )  # fmt: skip


def settings(detector: str = "retinanet", **changed: Any) -> RunSettings:
    values: dict[str, Any] = {
        "detector": detector, "neck": "fpn", "backbone": "resnet18", "width": 16, "min_size": 64, "max_size": 96,
        "genotype": "", "imagenet": None, "epochs": 2, "batch": 2, "lr": 0.005, "seed": 0, "train": "t", "val": "v",
    }  # fmt: skip
    return RunSettings(**{**values, **changed})


def test_annotations_are_read_as_they_stand(coco: Path, tmp_path: Path) -> None:
    read = read_annotations(coco / "train.json")
    assert read.categories == (PERSON, FACE)
    first, *_, blank = read.pictures
    assert (first.id, first.name, first.width, first.height) == (7, "train-0.png", 96, 96)
    # 174, 66, 272, 198 of 512 pixels, at 96: the face, label 2 of ids 3 and 17; then the person. The crowd is gone.
    np.testing.assert_allclose(first.boxes, [[32.625, 12.375, 51, 37.125], [3.75, 3.75, 86.25, 96]], rtol=1e-6)
    assert first.labels.tolist() == [2, 1]
    assert blank.boxes.shape == (0, 4)

    content: dict[str, list[dict[str, Any]]] = {
        "images": [{"id": 5, "file_name": "a.png", "width": 40, "height": 30}], "annotations": [],
        "categories": [{"id": 1}],
    }  # fmt: skip
    for box in ([-4, 2, 10, 10], [35, 25, 50, 50], [3, 3, 0, 9], [39.5, 3, 9, 9], [50, 3, 9, 9]):
        add(content, 5, 1, list(map(float, box)))
    (tmp_path / "odd.json").write_text(json.dumps(content))
    (picture,) = read_annotations(tmp_path / "odd.json").pictures
    assert picture.boxes.tolist() == [[0, 2, 6, 12], [35, 25, 40, 30]]


def test_a_mirrored_picture_has_mirrored_boxes(coco: Path) -> None:
    data = CocoDataset(coco / "pictures", read_annotations(coco / "train.json").pictures)
    (plain, target), (mirrored, moved) = data[0, False], data[0, True]
    assert plain.dtype == torch.uint8
    assert torch.equal(
        plain, torch.from_numpy(np.array(Image.open(coco / "pictures" / "train-0.png"))).permute(2, 0, 1)
    )
    assert torch.equal(mirrored[:, :, 0], plain[:, :, 95])
    assert moved["boxes"][0].tolist() == [45, 12.375, 63.375, 37.125]
    assert torch.equal(moved["labels"], target["labels"])
    blank = data[5, True][1]
    assert blank["boxes"].shape == (0, 4)


def test_the_order_of_batches_depends_on_seed_and_step_alone() -> None:
    none = np.zeros((0, 4), np.float32)
    pictures = [Picture(i, "", 10, 20 if i % 3 == 0 else 10, none, none[:, 0].astype(np.int64)) for i in range(11)]
    whole = list(BatchOrder(pictures, 3, 0, 0, 9))
    assert len(whole) == 9  # three epochs of three steps
    assert list(BatchOrder(pictures, 3, 0, 4, 9)) == whole[4:]
    assert list(BatchOrder(pictures, 3, 1, 0, 9)) != whole
    for epoch in range(3):
        batches = [[index for index, _ in batch] for batch in whole[3 * epoch : 3 * epoch + 3]]
        shown = [index for batch in batches for index in batch]
        assert len(set(shown)) == 9
        # Four tall and seven others: one batch of tall ones, two of the others, and a rest of two that is left out.
        assert sorted(len({i % 3 == 0 for i in batch}) for batch in batches) == [1, 1, 1]
    assert {mirrored for batch in whole for _, mirrored in batch} == {False, True}
    with pytest.raises(ValueError, match="11 pictures with boxes do not fill a batch of 12"):
        BatchOrder(pictures, 12, 0, 0, 1)


@pytest.mark.parametrize(("name", "strides"), [("retinanet", (8, 128)), ("fcos", (8, 128)), ("faster-rcnn", (4, 64))])
def test_only_the_neck_differs(name: str, strides: tuple[int, int]) -> None:
    built: dict[str, Any] = {}
    for neck in ("fpn", "autofae"):
        built[neck] = DETECTORS[name].build(
            GenericConfig("resnet18", neck, 2, 16, 64, 96, genotype().model_dump_json() if neck == "autofae" else "")
        )
    shapes = [
        {key: value.shape for key, value in model.state_dict().items() if not key.startswith("backbone.neck.")}
        for model in built.values()
    ]
    assert shapes[0] == shapes[1]
    assert built["autofae"].backbone.neck.levels == built["fpn"].backbone.levels
    for model in built.values():
        maps = list(model.eval().backbone(torch.zeros(1, 3, 256, 384)).values())
        assert len(maps) == 5
        assert [x.shape[1:] for x in (maps[0], maps[-1])] == [(16, 256 // s, 384 // s) for s in strides]
        anchors = getattr(model, "anchor_generator", None) or model.rpn.anchor_generator
        assert len(anchors.sizes) == 5
        # The anchor's smallest size is 4 strides, 8 for proposals, and FCOS's points are as wide as their stride.
        factor = {"retinanet": 4, "fcos": 1, "faster-rcnn": 8}[name]
        assert [size[0] for size in anchors.sizes] == [factor * strides[0] * 2**i for i in range(5)]


@pytest.mark.parametrize("neck", ["fpn", "autofae"])
@pytest.mark.parametrize("name", list(DETECTORS))
def test_a_run_learns_and_is_printed_when_asked_for_again(coco: Path, tmp_path: Path, name: str, neck: str) -> None:
    (tmp_path / "genotype.json").write_text(genotype().model_dump_json())
    out = tmp_path / "run"
    asked = [
        *arguments(coco, out), "--detector", name, "--neck", neck, "--epochs", "5", "--lr", "0.01",
        *(("--genotype", str(tmp_path / "genotype.json")) if neck == "autofae" else ()),
    ]  # fmt: skip
    code, text = run(*asked)
    assert code == 0, text
    assert "5 pictures (1 without boxes left out), 2 categories" in text
    result = json.loads((out / "result.json").read_text())
    assert len(result["losses"]) == 5
    assert np.isfinite(result["losses"]).all()
    assert min(result["losses"][2:]) < result["losses"][0]
    assert all(0 <= result[number] <= 1 for number in ("AP", "AP.50", "AP.75"))
    assert result["AP"] <= result["AP.50"]
    assert result["hardware"]
    assert result["val"]["pictures"] == 3
    assert 0 < result["parameters"]["neck"] < result["parameters"]["all"]

    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    code, again = run(*asked)
    # The progress bar ends without a line break where the output is no terminal.
    assert code == 0
    assert again.startswith(f"{name} + {neck}: AP ")
    assert again.strip() in text
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    code, text = run(*asked, "--width", "32")
    assert code == 2
    assert "belongs to a run with width 16, not 32" in text


class Killed(CocoDataset):
    """Gets this process an interrupt, as from Ctrl-C, while its n-th picture is read."""

    def __init__(self, folder: Path, pictures: tuple[Picture, ...], at: int, name: signal.Signals) -> None:
        super().__init__(folder, pictures)
        self.left, self.signal = at, name

    def __getitem__(self, key: Key) -> Sample:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), self.signal)
        return super().__getitem__(key)


@pytest.mark.parametrize("name", ["retinanet", "faster-rcnn"])
def test_a_run_that_is_cut_off_ends_like_one_that_is_not(coco: Path, tmp_path: Path, name: str) -> None:
    read = read_annotations(coco / "train.json")
    pictures = read.pictures[:5]
    data, here = CocoDataset(coco / "pictures", pictures), torch.device("cpu")
    whole, progress = train(settings(name), data, 2, Place(tmp_path / "whole", here))
    assert (progress.step, len(progress.losses)) == (4, 2)

    place = Place(tmp_path / "cut", here)
    for picture, sent, steps in ((2, signal.SIGINT, 1), (3, signal.SIGTERM, 3)):
        handler = signal.getsignal(sent)
        with pytest.raises(KeyboardInterrupt):
            train(settings(name), Killed(data.folder, pictures, picture, sent), 2, place)
        assert signal.getsignal(sent) is handler
        saved = torch.load(tmp_path / "cut" / "last.pt", weights_only=True)
        assert saved["progress"]["step"] == steps
        assert len(saved["progress"]["losses"]) == steps // 2
    resumed, ended = train(settings(name), data, 2, place)
    assert ended.step == 4
    assert ended.losses == progress.losses
    weights = whole.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in resumed.state_dict().items())
    # One that is complete trains no more.
    _, still = train(settings(name), data, 2, place)
    assert (still.step, still.seconds) == (4, ended.seconds)
    for other, wrong in ((settings(name, lr=0.1), "with lr 0.005, not 0.1"), (settings(name, epochs=3), "epochs 2")):
        with pytest.raises(ValueError, match=wrong):
            train(other, data, 2, place)
    with pytest.raises(ValueError, match="run on 5 pictures, not 4"):
        train(settings(name), CocoDataset(data.folder, pictures[:4]), 2, place)


class Oracle(nn.Module):
    """Finds in the k-th picture what it was given for it."""

    def __init__(self, answers: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.answers = iter(answers)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert all(image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1 for image in images)
        return [next(self.answers) for _ in images]


def test_detections_reach_the_evaluation_with_their_picture_box_and_category(coco: Path) -> None:
    read = read_annotations(coco / "val.json")
    data, place = CocoDataset(coco / "pictures", read.pictures), Place(coco, torch.device("cpu"))

    def answers(swapped: bool) -> list[dict[str, Tensor]]:
        return [
            {
                "boxes": torch.from_numpy(picture.boxes.copy()),
                "labels": torch.from_numpy(3 - picture.labels if swapped else picture.labels),
                "scores": torch.full((len(picture.labels),), 0.9),
            }
            for picture in read.pictures
        ]

    right = evaluate(Oracle(answers(False)), data, coco / "val.json", read.categories, 2, place)
    assert right.ap == pytest.approx(1.0)
    assert (right.images, right.detections) == (3, 4)
    wrong = evaluate(Oracle(answers(True)), data, coco / "val.json", read.categories, 2, place)
    assert wrong.ap50 == 0.0


def test_trained_weights_keep_their_norms_and_first_stage(coco: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    given = resnet18(weights=None).state_dict()
    torch.save(given, tmp_path / "resnet18.pth")
    data = CocoDataset(coco / "pictures", read_annotations(coco / "train.json").pictures[:2])
    place = Place(tmp_path / "run", torch.device("cpu"), imagenet=tmp_path / "resnet18.pth")
    model, _ = train(settings(imagenet="resnet18.pth"), data, 2, place)
    after = {key.removeprefix("backbone.body."): value for key, value in model.state_dict().items()}
    changed = {key for key, value in given.items() if key in after and not torch.equal(value, after[key])}
    assert changed == {
        key
        for key in given
        if key.startswith(("layer2", "layer3", "layer4")) and ("conv" in key or "downsample.0" in key)
    }
    assert not torch.equal(after["layer6.norm.running_mean"], torch.zeros_like(after["layer6.norm.running_mean"]))


def test_the_schedule_is_the_usual_one() -> None:
    config = optim_config(settings(), 87_948)  # COCO, twelve epochs of 16
    assert (config.warmup_steps, config.momentum, config.weight_decay) == (500, 0.9, 1e-4)
    assert [round(12 * m) for m in config.milestones] == [8, 11]
    assert optim_config(settings(), 40).warmup_steps == 4


@pytest.mark.parametrize(
    ("width", "groups"), [(256, 32), (64, 32), (96, 32), (32, 16), (16, 8), (24, 8), (20, 4), (9, 1)]
)
def test_groups_of_the_norms_have_two_channels_or_more(width: int, groups: int) -> None:
    assert norm_groups(width) == groups


def arguments(coco: Path, out: Path) -> list[str]:
    """A narrow run on one core."""
    return [
        "--train-images", str(coco / "pictures"), "--train-json", str(coco / "train.json"),
        "--val-images", str(coco / "pictures"), "--val-json", str(coco / "val.json"), "--out", str(out),
        "--backbone", "resnet18", "--width", "16", "--min-size", "64", "--max-size", "96", "--batch", "2",
        "--device", "cpu", "--workers", "0", "--epochs", "1",
    ]  # fmt: skip


def run(*args: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["generic", *args])
    return done.exit_code, done.output


def written(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.mark.parametrize("content", [{"settings": [1]}, {"settings": {}}, []])
def test_a_result_that_is_none_is_named(coco: Path, tmp_path: Path, content: object) -> None:
    written(tmp_path / "result.json", content)
    code, text = run(*arguments(coco, tmp_path))
    assert (code, "result.json is not a result of this command" in text) == (2, True), text


def test_sizes_that_no_memory_holds_are_refused(coco: Path, tmp_path: Path) -> None:
    for option in (("--width", "100000000"), ("--max-size", "10000000"), ("--seed", str(2**64))):
        code, text = run(*arguments(coco, tmp_path), *option)
        assert (code, "Invalid value" in text) == (2, True), text


def test_what_is_wrong_is_said_in_a_sentence(coco: Path, tmp_path: Path) -> None:
    good = json.loads((coco / "train.json").read_text())
    first = good["annotations"][0]
    elsewhere = {**good, "annotations": [{**first, "image_id": 999}]}
    unknown = {**good, "annotations": [{**first, "category_id": 4}]}
    short = {**good, "annotations": [first, {**first, "bbox": [1, 2, 3]}]}
    other = {**good, "categories": [*good["categories"], {"id": 90}]}
    sized = {**good, "images": [{**image, "width": image["width"] - 1} for image in good["images"]]}
    for number, (changed, sentence) in enumerate((
        (("--train-json", str(tmp_path / "absent.json")), "absent.json: expected COCO annotations"),
        (("--train-json", written(tmp_path / "a.json", "{")), "is not in COCO's format"),
        (("--train-json", written(tmp_path / "b.json", {"images": []})), "annotations: Field required"),
        (("--train-json", written(tmp_path / "c.json", elsewhere)), "annotation 0 is of picture 999"),
        (("--train-json", written(tmp_path / "d.json", unknown)), "annotation 0 has category 4"),
        (("--train-json", written(tmp_path / "e.json", short)), "annotations.1.bbox"),
        (("--train-json", written(tmp_path / "f.json", other)), "do not have the same categories"),
        (("--train-json", written(tmp_path / "g.json", sized)), "pixels, and its annotation says "),
        (("--train-json", written(tmp_path / "h.json", sized), "--workers", "1"), "pixels, and its annotation says "),
        (("--val-json", written(tmp_path / "i.json", {**good, "annotations": []})), "has no boxes"),
        (("--train-images", str(tmp_path)), "lacks 5 of 5 pictures, as train-0.png"),
        (("--batch", "6"), "5 pictures with boxes do not fill a batch of 6"),
        (("--detector", "yolo"), "no detector 'yolo'; there are retinanet, fcos, faster-rcnn"),
        (("--neck", "magic"), "no neck 'magic'; there are fpn, autofae"),
        (("--backbone", "vgg"), "no backbone 'vgg'"),
        (("--max-size", "40"), "--max-size 40 is below --min-size 64"),
        (("--neck", "autofae", "--genotype", written(tmp_path / "x.json", "{}")), "genotype"),
        (("--neck", "autofae", "--genotype", str(coco / "pictures" / "val-0.png")), "val-0.png is no genotype"),
        (("--imagenet", written(tmp_path / "weights.pth", "no")), "weights.pth"),
        (("--lr", "nan"), "--lr is a rate above 0, not nan"),
        (("--lr", "0"), "--lr is a rate above 0"),
        (("--device", "gpu"), "no device 'gpu'"),
    )):  # fmt: skip
        code, text = run(*arguments(coco, tmp_path / str(number)), *changed)
        assert code == 2, (changed, text)
        assert text.count("error: ") == 1
        assert sentence in text
        assert "Traceback" not in text
