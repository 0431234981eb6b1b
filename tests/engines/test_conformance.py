"""One suite for all engines: the same calls, the same answers as the reference, the same kinds of errors.

    python -m pytest tests/engines              everything that needs no GPU
    python -m pytest -m gpu tests/engines       ONNX Runtime's CUDA provider and TensorRT, on a machine that has them

The reference is PyTorch in float32 with greedy NMS (`export.reference`). The second command has never been run: no GPU
was at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from service.engines.base import Detections, Engine, EngineError
from service.letterbox import letterbox
from service.repository.manifest import InputSize
from tests.engines.workshop import (
    CROWDED,
    LIVELY,
    MAX_BATCH,
    SILENT,
    SIZES,
    STRICT,
    THRESHOLDS,
    Case,
    Pixels,
    Workshop,
    cases,
    differences,
    reference,
    stranger,
)
from training.models.detector import normalize
from training.models.postprocess import PostprocessConfig, postprocess

# Building a plan takes minutes on a GPU.
pytestmark = pytest.mark.timeout(1800)


class Bench:
    """One engine's moods, each opened once, and the reference's answers beside them."""

    def __init__(self, shop: Workshop, case: Case) -> None:
        self.shop, self.case = shop, case
        self.opened: dict[str, Engine] = {}

    def engine(self, mood: str) -> Engine:
        if mood not in self.opened:
            self.opened[mood] = self.case.open(self.shop, mood)
        return self.opened[mood]

    def check(self, mood: str, images: Pixels, found: list[Detections]) -> None:
        """Compare with the reference, picture by picture."""
        for ours in found:
            check_form(ours, images.shape[1], images.shape[2], mood)
        if self.case.tolerance is None:
            return
        wanted = _answers(self.shop, mood, images.tobytes(), images.shape)
        for k, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
            said = differences(ours, theirs, THRESHOLDS[mood].score, self.case.tolerance)
            assert not said, f"{self.case.name}, picture {k} of {images.shape}: {'; '.join(said)}"


_ANSWERS: dict[tuple[str, int, tuple[int, ...]], list[Detections]] = {}


def _answers(shop: Workshop, mood: str, data: bytes, shape: tuple[int, ...]) -> list[Detections]:
    """The reference's, kept, since every engine is asked for the same pictures."""
    key = (mood, hash(data), shape)
    if key not in _ANSWERS:
        _ANSWERS[key] = reference(shop, mood).run(np.frombuffer(data, np.uint8).reshape(shape))
    return _ANSWERS[key]


def check_form(found: Detections, height: int, width: int, mood: str) -> None:
    limits = THRESHOLDS[mood]
    assert (found.boxes.dtype, found.scores.dtype) == (np.float32, np.float32)
    assert found.boxes.shape == (len(found.scores), 4)
    assert len(found.scores) <= limits.max_detections
    assert (np.diff(found.scores) <= 0).all()
    assert (found.scores > limits.score).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [width, height, width, height]).all()


@pytest.fixture(scope="module", params=list(cases()))
def bench(request: pytest.FixtureRequest, shop: Workshop) -> Iterator[Bench]:
    made = Bench(shop, request.param)
    yield made
    for engine in made.opened.values():
        engine.close()


def fitted(pixels: Pixels, size: InputSize) -> Pixels:
    return letterbox(pixels, size, pixels.shape[1], pixels.shape[0]).canvas


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_input_size_on_a_photo_or_on_a_crowd(
    bench: Bench, size: InputSize, astronaut: Pixels, crowd: Pixels
) -> None:
    # In turns, since the reference takes its time; both are in the batch below.
    images = fitted((astronaut, crowd)[SIZES.index(size) % 2], size)[None]
    found = bench.engine(LIVELY).run(images)
    assert len(found) == 1
    assert len(found[0].scores) > 10
    bench.check(LIVELY, images, found)


def test_a_batch_is_its_pictures_one_by_one(bench: Bench, astronaut: Pixels, crowd: Pixels) -> None:
    size = SIZES[0]
    images = np.stack([fitted(astronaut, size), np.zeros((size.height, size.width, 3), np.uint8), fitted(crowd, size)])
    engine = bench.engine(LIVELY)
    together = engine.run(images)
    bench.check(LIVELY, images, together)
    for k, one in enumerate(together):
        (alone,) = engine.run(images[k : k + 1])
        said = differences(one, alone, THRESHOLDS[LIVELY].score, bench.case.tolerance or STRICT)
        assert not said, f"picture {k}: {said}"
    assert len(engine.run(np.stack([images[0]] * MAX_BATCH))) == MAX_BATCH


def test_answers_do_not_depend_on_what_ran_before(bench: Bench, astronaut: Pixels, crowd: Pixels) -> None:
    engine = bench.engine(LIVELY)
    images = fitted(astronaut, SIZES[0])[None]
    (first,) = engine.run(images)
    kept = first.boxes.copy()
    engine.run(fitted(crowd, SIZES[1])[None])
    engine.run(np.stack([fitted(crowd, SIZES[0])] * 2))
    (again,) = engine.run(images)
    np.testing.assert_array_equal(first.boxes, kept)  # no view of a buffer that the next run writes
    np.testing.assert_array_equal(first.boxes, again.boxes)
    np.testing.assert_array_equal(first.scores, again.scores)


def test_pictures_in_which_there_is_nothing(bench: Bench, crowd: Pixels) -> None:
    size = SIZES[0]
    blank = np.zeros((size.height, size.width, 3), np.uint8)
    for found in bench.engine(SILENT).run(np.stack([blank, fitted(crowd, size)])):
        check_form(found, size.height, size.width, SILENT)
        assert len(found.scores) == 0


def test_more_faces_than_the_output_holds(bench: Bench, crowd: Pixels) -> None:
    size = SIZES[0]
    images = np.stack([fitted(crowd, size), fitted(crowd[:512, :700], size)])
    found = bench.engine(CROWDED).run(images)
    assert [len(one.scores) for one in found] == [750, 750]
    for k, one in enumerate(found):
        check_form(one, size.height, size.width, CROWDED)
        if bench.case.tolerance == STRICT:
            # The worst of 750 are a lottery; the best are the reference's.
            wanted = _answers(bench.shop, CROWDED, images[k : k + 1].tobytes(), (1, *images.shape[1:]))[0]
            best = Detections(wanted.boxes[:600], wanted.scores[:600])
            assert not [text for text in differences(one, best, 0.0, STRICT) if text.startswith("missed")]


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 256, 320, 3), np.float32),
        np.zeros((256, 320, 3), np.uint8),
        np.zeros((1, 3, 256, 320), np.uint8),
        np.zeros((0, 256, 320, 3), np.uint8),
    ],
    ids=["float32", "no batch", "channels first", "no picture"],
)
def test_inputs_of_another_kind_are_refused(bench: Bench, images: Pixels) -> None:
    engine = bench.engine(LIVELY)
    with pytest.raises(EngineError, match=r"\w failed on input .*it takes uint8 pictures"):
        engine.run(images)
    assert len(engine.run(np.zeros((1, 256, 320, 3), np.uint8))) == 1  # and it goes on


def test_warming_up_memory_and_closing_twice(bench: Bench) -> None:
    engine: Engine = bench.case.open(bench.shop, SILENT)
    engine.warm_up(256, 320)
    engine.warm_up(256, 320, batch=2)
    assert engine.memory_bytes() > 10_000  # of a detector with some hundred thousand weights
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match=r"\w is closed"):
        engine.run(np.zeros((1, 256, 320, 3), np.uint8))


def test_files_that_are_none_are_refused_by_name(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / f"bad{bench.case.suffix}"
    with pytest.raises(EngineError, match=r"bad\.\w+ .*(cannot|not)"):
        bench.case.load(path)
    path.write_bytes(b"neither a graph nor a plan")
    with pytest.raises(EngineError, match=rf"bad\{bench.case.suffix} cannot be loaded by \w+"):
        bench.case.load(path)


def test_other_graphs_are_refused_by_name(bench: Bench, tmp_path: Path) -> None:
    if bench.case.suffix == ".plan":
        pytest.skip("a plan of such a graph cannot be built; test_tensorrt_engine.py has it on a fake")
    path = tmp_path / f"stranger{bench.case.suffix}"
    if bench.case.suffix == ".pt":
        torch.save({"config": {}}, path)
    else:
        stranger(path)
    with pytest.raises(EngineError, match=r"stranger\.\w+ .*is not a"):
        bench.case.load(path)


def test_the_reference_is_what_training_evaluates(shop: Workshop, astronaut: Pixels, crowd: Pixels) -> None:
    """Another NMS (torchvision's) and other code around it come to the same."""
    engine = reference(shop, LIVELY)
    for pixels in (astronaut, crowd):
        images = fitted(pixels, SIZES[3])[None]
        with torch.no_grad():
            output = shop.detector(normalize(torch.from_numpy(images).permute(0, 3, 1, 2)))
        ((boxes, scores),) = postprocess(output, images.shape[1], images.shape[2], PostprocessConfig())
        (found,) = engine.run(images)
        assert not differences(found, Detections(boxes.numpy(), scores.numpy()), 0.05, STRICT)


def test_the_suite_notices_what_is_wrong(shop: Workshop, crowd: Pixels) -> None:
    (right,) = reference(shop, LIVELY).run(fitted(crowd, SIZES[0])[None])
    assert not differences(right, right, 0.05, STRICT)
    moved = Detections(right.boxes + np.float32(0.06), right.scores)
    rescored = Detections(right.boxes, right.scores * np.float32(0.99))
    fewer = Detections(right.boxes[1:], right.scores[1:])
    for wrong in (moved, rescored, fewer, Detections(right.boxes[:0], right.scores[:0])):
        assert any(text.startswith("missed") for text in differences(wrong, right, 0.05, STRICT))
    assert differences(right, fewer, 0.05, STRICT)[0].startswith("invented 1 of")
