"""The annotated picture: boxes where they belong, at any scale, in a size that can be sent."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from service.imaging.annotate import MAX_LONG_SIDE, ImageFormat, annotate

Pixels = npt.NDArray[np.uint8]


def draw(
    pixels: Pixels, boxes: list[list[float]], original: tuple[int, int] | None = None, image_format: ImageFormat = "PNG"
) -> Image.Image:
    height, width = pixels.shape[:2]
    original = original or (width, height)
    data = annotate(
        Image.fromarray(pixels),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.1, len(boxes), dtype=np.float32),
        original_width=original[0],
        original_height=original[1],
        image_format=image_format,
    )
    image = Image.open(io.BytesIO(data))
    assert image.format == image_format
    return image


def green(image: Image.Image) -> npt.NDArray[np.bool_]:
    pixels = np.asarray(image.convert("RGB")).astype(int)
    return np.asarray((pixels[..., 1] > 180) & (pixels[..., 0] < 140))


def test_box_lies_on_its_edges_and_leaves_the_face_alone() -> None:
    marked = green(draw(np.zeros((200, 300, 3), np.uint8), [[100, 50, 180, 150]]))
    assert marked[100, 100]
    assert marked[100, 180]
    assert marked[150, 140]
    assert not marked[60:140, 110:170].any()
    assert not marked[160:, :].any()


def test_boxes_follow_the_scale_of_reduced_pixels() -> None:
    marked = green(draw(np.zeros((100, 150, 3), np.uint8), [[400, 200, 800, 600]], original=(1200, 800)))
    columns = np.flatnonzero(marked[60])
    assert abs(columns.min() - 50) <= 2
    assert abs(columns.max() - 100) <= 2


def test_no_faces_keep_the_picture_as_it_is(astronaut: Pixels) -> None:
    assert (np.asarray(draw(astronaut, [])) == astronaut).all()


@pytest.mark.parametrize(("width", "height"), [(4000, 1000), (1000, 4000), (5000, 1)])
def test_output_is_at_most_the_stated_size(width: int, height: int) -> None:
    image = draw(np.zeros((height, width, 3), np.uint8), [[0, 0, width, height]], image_format="JPEG")
    assert max(image.size) == MAX_LONG_SIDE
    assert min(image.size) >= 1


def test_score_is_written_where_there_is_room_and_not_in_a_crowd() -> None:
    wide = green(draw(np.zeros((400, 400, 3), np.uint8), [[100, 100, 300, 300]]))
    assert wide[85:98, 101:120].mean() > 0.5
    small = green(draw(np.zeros((400, 400, 3), np.uint8), [[100, 100, 108, 110]]))
    assert small[:98].sum() == 0


@pytest.mark.parametrize(
    "box",
    [[0, 0, 400, 300], [-20, -20, 10, 10], [390, 290, 460, 360], [5, 5, 5, 5], [10, 10, 9, 9], [500, 500, 600, 600]],
)
def test_odd_boxes_never_fail(box: list[float]) -> None:
    assert draw(np.zeros((300, 400, 3), np.uint8), [box]).size == (400, 300)


def test_full_house_is_drawn(astronaut: Pixels) -> None:
    generator = np.random.default_rng(0)
    corner = generator.uniform(0, 480, (750, 2))
    boxes = np.concatenate([corner, corner + generator.uniform(2, 30, (750, 2))], axis=1)
    assert draw(astronaut, boxes.tolist(), image_format="JPEG").size == (512, 512)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (7, 3)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    assert draw(np.zeros((size[1], size[0], 3), np.uint8), [[0, 0, *size]]).size == size


def test_the_given_picture_stays_as_it_is() -> None:
    page = Image.new("RGB", (300, 200))
    annotate(page, np.array([[100, 50, 180, 150]], np.float32), np.ones(1, np.float32),
             original_width=300, original_height=200)  # fmt: skip
    assert not np.asarray(page).any()
