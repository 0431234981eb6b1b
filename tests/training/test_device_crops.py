"""Crops cut on the training device against those of the loader: pixels, boxes, order, errors, memory, resuming."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import Pixels
from tests.training.test_loop import config
from training.data import device_crops
from training.data.cache import build_cache
from training.data.crops import CropConfig, Window
from training.data.dataset import (
    FILL,
    CropDataset,
    DataConfig,
    Plan,
    SampleKey,
    StreamSampler,
    collate,
    cut,
    load_training_set,
)
from training.data.device_crops import NoRoomError, device_batches, make_batch, pictures_on, plan_crops, upload
from training.data.wider import PhotoAnnotation
from training.engine import checkpoint
from training.engine.distributed import World
from training.engine.loop import RunOptions, train
from training.models import Detector

CPU = torch.device("cpu")
ENLARGE = CropConfig(face=1.0, face_range=(60.0, 400.0), min_fill=0.0)
SHRINK = CropConfig(face=0.0, whole_range=(0.2, 1.2))
CROPS = {"enlarge": ENLARGE, "shrink": SHRINK, "mixed": CropConfig(anchor=0.2, ssd=0.2, face=0.4)}


def photos(root: Path, cache: Path, **changes: object) -> CropDataset:
    return load_training_set(root, "train", cache, dataclasses.replace(DataConfig(), **changes))  # type: ignore[arg-type]


def keys(count: int, size: int, seed: int = 0) -> list[SampleKey]:
    return [SampleKey(k % 7, size, (seed, 1, k)) for k in range(count)]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make small steps slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "crop plans"]


@pytest.mark.parametrize("kind", CROPS)
@pytest.mark.parametrize("size", [64, 160])
def test_crops_are_those_of_the_loader(tiny_wider: Path, tmp_path: Path, kind: str, size: int) -> None:
    data = photos(tiny_wider, tmp_path, crops=CROPS[kind])
    batch = keys(28, size)
    pictures = upload(data.cache, CPU)
    images, targets = make_batch(pictures, plan_crops(data, batch, pictures.starts, pin=False))
    expected, wanted = collate([data[key] for key in batch])
    assert images.shape == expected.shape
    assert images.dtype == torch.uint8
    difference = (images.int() - expected.int()).abs().float()
    # Where Pillow shrinks to less than a quarter it averages blocks first, which is not quite the filter it names.
    exact = torch.tensor([data.plan(key).window.scale > 0.26 for key in batch])
    assert difference[exact].max() <= 1
    assert difference.mean(dim=(1, 2, 3)).max() < 2.5
    for ours, theirs in zip(targets, wanted, strict=True):
        assert torch.equal(ours.faces, theirs.faces)
        assert torch.equal(ours.ignored, theirs.ignored)
    assert {data.plan(key).flip for key in batch} == {True, False}


def test_boxes_land_on_the_same_pixels(tmp_path: Path, astronaut: Pixels) -> None:
    box = (180, 70, 260, 190)
    pixels = np.minimum(astronaut, 200)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    file = tmp_path / "white.png"
    Image.fromarray(pixels).save(file)
    photo = PhotoAnnotation(file.name, np.array([box], dtype=np.float64), np.zeros(1, dtype=bool))
    data = CropDataset([photo], build_cache([file], tmp_path), DataConfig(crops=ENLARGE))
    pictures = upload(data.cache, CPU)
    batch = [SampleKey(0, 128, (0, 0, k)) for k in range(16)]
    images, targets = make_batch(pictures, plan_crops(data, batch, pictures.starts, pin=False))
    for image, target in zip(images, targets, strict=True):
        rows, cols = (image.amin(dim=0) > 228).nonzero().unbind(1)
        seen = torch.stack((cols.min(), rows.min(), cols.max() + 1, rows.max() + 1))
        assert (seen - target.faces[0]).abs().max() <= 1.0


def test_a_window_beside_the_picture_is_grey_and_edges_lie_where_cut_has_them(tiny_wider: Path, tmp_path: Path) -> None:
    data = photos(tiny_wider, tmp_path, flip=0.0)
    windows = [
        Window(-300.0, 5.0, 200.0, 0.32),
        Window(-20.3, -40.7, 120.0, 64 / 120),
        Window(100.5, 90.25, 128.0, 0.5),
    ]
    pictures = upload(data.cache, CPU)

    class Chosen(CropDataset):
        def plan(self, key: SampleKey) -> Plan:
            return super().plan(key)._replace(window=windows[key.seed[2]])

    chosen = Chosen(data.photos, data.cache, data.config)
    batch = [SampleKey(0, 64, (0, 0, k)) for k in range(len(windows))]
    images, _ = make_batch(pictures, plan_crops(chosen, batch, pictures.starts, pin=False))
    assert (images[0] == FILL).all()
    for image, window in zip(images, windows, strict=True):
        expected = torch.from_numpy(cut(data.cache[0], window, 64)).permute(2, 0, 1)
        assert (image.int() - expected.int()).abs().max() <= 1


def test_a_batch_cut_in_parts_is_the_same(tiny_wider: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = photos(tiny_wider, tmp_path)
    pictures = upload(data.cache, CPU)
    whole = plan_crops(data, keys(9, 64), pictures.starts, pin=False)
    monkeypatch.setattr(device_crops, "_WORK", 100_000)
    parts = plan_crops(data, keys(9, 64), pictures.starts, pin=False)
    assert len(whole.parts) == 1
    assert len(parts.parts) > 3
    assert [begin for begin, *_ in parts.parts[1:]] == [end for _, end, *_ in parts.parts[:-1]]
    difference = make_batch(pictures, whole)[0].int() - make_batch(pictures, parts)[0].int()
    assert difference.abs().max() <= 1  # sums of other lengths round differently


@pytest.mark.usefixtures("one_thread")
def test_the_order_is_the_samplers(tiny_wider: Path, tmp_path: Path) -> None:
    data = photos(tiny_wider, tmp_path)
    for rank in (0, 1):
        sampler = StreamSampler(data.weights(), [(64, 4, 0.5), (96, 2, 0.5)], 5, 2, 10, rank)
        ours = list(device_batches(data, sampler, upload(data.cache, CPU), ahead=2))
        theirs = [collate([data[key] for key in batch]) for batch in sampler]
        assert len(ours) == len(theirs) == 8
        for (images, targets), (expected, wanted) in zip(ours, theirs, strict=True):
            assert (images.float() - expected.float()).abs().mean() < 1
            assert all(torch.equal(a.faces, b.faces) for a, b in zip(targets, wanted, strict=True))
    assert not workers()


def test_what_the_thread_raises_reaches_the_caller(tiny_wider: Path, tmp_path: Path) -> None:
    data = photos(tiny_wider, tmp_path)

    def broken() -> Iterator[list[SampleKey]]:
        yield keys(2, 64)
        raise RuntimeError("the sampler broke")

    stream = device_batches(data, broken(), upload(data.cache, CPU))
    assert next(stream)[0].shape == (2, 3, 64, 64)
    with pytest.raises(RuntimeError, match="the sampler broke"):
        next(stream)
    with pytest.raises(IndexError):
        next(device_batches(data, [[SampleKey(99, 64, (0, 0, 0))]], upload(data.cache, CPU)))
    assert not workers()


def test_closing_the_iterator_ends_the_thread(tiny_wider: Path, tmp_path: Path) -> None:
    data = photos(tiny_wider, tmp_path)
    endless = StreamSampler(data.weights(), [(64, 2, 1.0)], 0, 0, 10**9)
    stream = device_batches(data, endless, upload(data.cache, CPU), ahead=1)
    next(stream)
    assert len(workers()) == 1
    stream.close()
    assert not workers()


def test_a_device_without_room_is_named_with_what_it_lacks(
    tiny_wider: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = photos(tiny_wider, tmp_path)
    monkeypatch.setattr(device_crops, "free_bytes", lambda _device: len(data.cache.flat))
    gpu = torch.device("cuda:0")
    with pytest.raises(NoRoomError, match="must be free on cuda:0"):
        pictures_on(gpu, data.cache, True)
    assert pictures_on(gpu, data.cache, None) is None
    assert "must be free on cuda:0" in capsys.readouterr().err
    assert pictures_on(gpu, data.cache, False) is None
    assert pictures_on(CPU, data.cache, None) is None
    assert pictures_on(CPU, data.cache, True) is not None


@pytest.mark.usefixtures("one_thread")
def test_a_resumed_run_with_device_crops_ends_in_the_same_state(tiny_wider: Path, tmp_path: Path) -> None:
    data, world = photos(tiny_wider, tmp_path / "cache"), World(0, 1, CPU)

    class StopError(Exception):
        pass

    def stop(_model: Detector) -> dict[str, float]:
        raise StopError

    def score(_model: Detector) -> dict[str, float]:
        return {"ap50": 0.5}

    whole = RunOptions(tmp_path / "whole", device_crops=True)
    train(config(6 / 3.5), data, whole, world, score)
    parts = dataclasses.replace(whole, out=tmp_path / "parts", save_every=3, validate_every=4)
    with pytest.raises(StopError):
        train(config(6 / 3.5), data, parts, world, stop)
    assert not workers()
    train(config(6 / 3.5), data, dataclasses.replace(parts, validate_every=0), world, score)
    one, two = (checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    assert one["progress"]["step"] == two["progress"]["step"] == 6
    assert all(torch.equal(one["model"][key], two["model"][key]) for key in one["model"])


@pytest.mark.gpu
def test_a_gpu_cuts_the_same_crops(tiny_wider: Path, tmp_path: Path) -> None:
    data = photos(tiny_wider, tmp_path)
    sampler = list(StreamSampler(data.weights(), [(64, 16, 0.5), (160, 8, 0.5)], 1, 0, 6))
    gpu = torch.device("cuda", torch.cuda.current_device())
    pictures = pictures_on(gpu, data.cache, None)
    assert pictures is not None
    ours = list(device_batches(data, sampler, pictures))
    theirs = list(device_batches(data, sampler, upload(data.cache, CPU)))
    for (images, targets), (expected, wanted) in zip(ours, theirs, strict=True):
        assert images.device == gpu
        assert (images.cpu().int() - expected.int()).abs().max() <= 1
        assert all(torch.equal(a.faces.cpu(), b.faces) for a, b in zip(targets, wanted, strict=True))


@pytest.mark.gpu
def test_making_a_batch_never_waits_for_the_gpu(tiny_wider: Path, tmp_path: Path) -> None:
    data = photos(tiny_wider, tmp_path)
    pictures = upload(data.cache, torch.device("cuda", torch.cuda.current_device()))
    plans = plan_crops(data, keys(8, 64), pictures.starts, pin=True)
    make_batch(pictures, plans)
    torch.cuda.set_sync_debug_mode("error")
    try:
        make_batch(pictures, plans)
    finally:
        torch.cuda.set_sync_debug_mode("default")
