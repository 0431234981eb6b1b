"""Rotation, JPEG's losses, square crops and the choice of photos."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from training.data.crops import CropConfig, choose_window
from training.data.dataset import CropDataset, DataConfig, SampleKey, load_training_set
from training.data.jpeg import compress
from training.data.photometric import PhotometricConfig, augment
from training.data.rotation import RotationConfig, rotate, turn_boxes
from training.models.losses import Targets


def disc(size: int, x: float, y: float, radius: float) -> torch.Tensor:
    ys, xs = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    inside = (xs - x) ** 2 + (ys - y) ** 2 < radius**2
    return torch.where(inside, 255, 110).to(torch.uint8).expand(3, -1, -1).clone()


def test_boxes_turn_with_their_pixels() -> None:
    images = torch.stack([disc(128, 90, 40, 10)] * 8)
    targets = [Targets(torch.tensor([[80.0, 30, 100, 50]]), torch.zeros(0, 4))] * 8
    turned, moved = rotate(images, targets, RotationConfig(1.0, 40.0), torch.Generator().manual_seed(3))
    shifts = []
    for picture, target in zip(turned, moved, strict=True):
        rows, columns = (picture[0] > 200).nonzero(as_tuple=True)
        center = torch.tensor([columns.float().mean() + 0.5, rows.float().mean() + 0.5])
        box = target.faces[0]
        torch.testing.assert_close((box[:2] + box[2:]) / 2, center, rtol=0, atol=0.7)
        torch.testing.assert_close(box[2:] - box[:2], torch.tensor([20.0, 20.0]), rtol=0, atol=0.01)  # a disc stays one
        shifts.append(float((center - torch.tensor([90.0, 40.0])).norm()))
    assert max(shifts) > 5


def test_a_quarter_turn_swaps_the_sides() -> None:
    turned = turn_boxes(torch.tensor([[60.0, 20, 80, 50]]), math.pi / 2, 100)
    torch.testing.assert_close(turned, torch.tensor([[50.0, 60, 80, 80]]), rtol=0, atol=1e-4)


def test_ignore_regions_keep_their_corners() -> None:
    region = torch.tensor([[40.0, 40, 80, 80]])
    side = 40 * (math.cos(math.radians(25)) + math.sin(math.radians(25)))
    turned = turn_boxes(region, math.radians(25), 120, filled=True)
    torch.testing.assert_close(turned[0, 2:] - turned[0, :2], torch.tensor([side, side]))


def test_faces_that_leave_the_crop_are_ignored() -> None:
    images = torch.full((4, 3, 64, 64), 110, dtype=torch.uint8)
    targets = [Targets(torch.tensor([[0.0, 0, 6, 6]]), torch.zeros(0, 4))] * 4
    _, moved = rotate(images, targets, RotationConfig(1.0, 45.0), torch.Generator().manual_seed(0))
    gone = [t for t in moved if not len(t.faces)]
    assert gone
    assert all(len(t.ignored) == 1 for t in gone)


def test_no_rotation_changes_nothing() -> None:
    images = disc(32, 16, 16, 4)[None]
    targets = [Targets(torch.zeros(0, 4), torch.zeros(0, 4))]
    same, moved = rotate(images, targets, RotationConfig(), torch.Generator().manual_seed(0))
    assert same is images
    assert moved[0] is targets[0]


@pytest.mark.parametrize("quality", [20, 50, 90])
def test_jpeg_loses_what_a_codec_loses(quality: int) -> None:
    pixels = np.asarray(astronaut())[:256, 100:356]  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=0)
    codec = torch.from_numpy(np.asarray(Image.open(buffer)).copy()).permute(2, 0, 1).float()
    original = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float()
    ours = compress(original[None], torch.tensor([float(quality)]))[0]
    loss = (codec - original).abs().mean()
    assert (ours - codec).abs().mean() < 0.25 * loss + 0.6
    assert (ours - original).abs().mean() == pytest.approx(float(loss), rel=0.15, abs=0.3)


def test_jpeg_joins_the_colour_changes() -> None:
    images = torch.from_numpy(np.asarray(astronaut())[:64, :64].copy()).permute(2, 0, 1)[None]  # type: ignore[no-untyped-call]
    still = PhotometricConfig(0, 0, 0, 0, 0, 0, 0)
    plain = augment(images, still, torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain, images.float())
    squeezed = augment(images, replace(still, jpeg=1.0), torch.Generator().manual_seed(0))
    assert 0.5 < (squeezed - plain).abs().mean() < 20


def test_square_crops_hold_a_face() -> None:
    rng = np.random.default_rng(0)
    face = np.array([[500.0, 300, 520, 330]])
    sides = []
    for _ in range(200):
        window = choose_window(640, 400, face, 256, CropConfig(face=0.0, square=1.0), rng)
        assert window.x <= 510 < window.x + window.side
        assert window.y <= 315 < window.y + window.side
        assert window.scale == pytest.approx(256 / window.side)
        sides.append(round(window.side / 400, 2))
    assert {0.3, 1.0, 2.0} <= set(sides) <= {0.3, 0.45, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0}


@pytest.fixture
def data(tiny_wider: Path, tmp_path: Path) -> CropDataset:
    return load_training_set(tiny_wider, "train", tmp_path / "cache", DataConfig())


def with_config(data: CropDataset, **fields: object) -> CropDataset:
    config = replace(data.config, **fields)  # type: ignore[arg-type]
    return CropDataset(data.photos, data.cache, config, data.origins)


def test_photos_are_left_out_by_source_and_share(data: CropDataset) -> None:
    events = np.array([photo.name.startswith("event/") for photo in data.photos])
    assert (with_config(data, leave_out=("event",)).weights() > 0).tolist() == (~events).tolist()
    assert (with_config(data, leave_out=("negatives",)).weights() > 0).tolist() == events.tolist()
    half, all_of_it = with_config(data, fraction=0.5).weights(), with_config(data).weights()
    assert 0 < half.sum() < all_of_it.sum()
    smaller = with_config(data, fraction=0.3).weights()
    assert 0 < smaller.sum() < half.sum()
    assert bool((smaller <= half).all())  # smaller parts lie within larger ones
    with pytest.raises(ValueError, match="no photo"):
        with_config(data, leave_out=("event", "negatives")).weights()


def test_machine_labelled_photos_weigh_less(data: CropDataset) -> None:
    data.origins = {data.photos[0].name: "pseudo", data.photos[1].name: "human"}
    weights = with_config(data, machine_share=0.25).weights()
    assert weights[:3].tolist() == [0.25, 1.0, 1.0]


def test_ignore_regions_can_become_background(data: CropDataset) -> None:
    photo = data.photos[5]
    data.photos = [replace(photo, ignore=np.ones(len(photo.boxes), dtype=bool))]
    counts = []
    for honour in (True, False):
        chosen = with_config(data, honour_ignore=honour)
        counts.append(sum(len(chosen[SampleKey(0, 64, (0, 0, k))].targets.ignored) for k in range(20)))
    assert counts[0] > 0
    assert counts[1] == 0
