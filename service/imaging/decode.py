"""Picture bytes -> RGB pixels. The header is judged before anything is decoded, and no input makes it hang or crash.

JPEG, PNG and WebP by Pillow. Boxes are later reported in pixels of the *upright original*: what a viewer shows after
the EXIF orientation is applied. Choices where a picture has more than plain RGB:

- Transparency is laid on white, the page that most viewers show behind it.
- 16-bit greyscale keeps its high byte; CMYK is converted without colour profiles, which detection does not need.
- Of an animation the first frame counts.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import AsfdError, TooLargeError, UndecodableImageError, UnsupportedTypeError
from service.imaging.essentials import essentials
from service.imaging.sniff import ACCEPTED, Format, accepted_format, known_foreign_type

_LOG = logging.getLogger(__name__)

_ORIENTATION_TAG = 0x0112
_UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# EXIF of a JPEG fits into 64 KiB, twice as much in hexadecimal. Other formats set no limit, and every entry costs time.
_MAX_EXIF_BYTES = 1 << 17
# PNG and WebP cannot be decoded at a fraction. Shrinking by whole factors first saves memory and time in what follows;
# keeping twice the side that is wanted leaves the filtering to the letterbox.
_REDUCING_GAP = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """max_pixels: largest width x height that is decoded."""

    max_pixels: int


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the file says of itself. width, height: upright original pixels; orientation: EXIF value, 1 to 8."""

    format: Format
    width: int
    height: int
    orientation: int
    mode: str
    size_bytes: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def long_side(self) -> int:
        return max(self.width, self.height)


@dataclass(frozen=True, slots=True)
class Decoded:
    """picture: RGB, upright, maybe smaller than the original whose size stands beside it."""

    picture: Image.Image
    original_width: int
    original_height: int

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 [h, w, 3], a copy."""
        return np.asarray(self.picture)


def inspect(data: bytes, limits: Limits) -> ImageHeader:
    """Read the header only.

    Raises `UndecodableImageError` (empty, damaged, no picture), `UnsupportedTypeError` (another known type) or
    `TooLargeError` (more pixels than `limits.max_pixels`).
    """
    if not data:
        raise UndecodableImageError(f"The body is empty: send a picture ({ACCEPTED}) in it.")
    file_format = accepted_format(data)
    if file_format is None:
        foreign = known_foreign_type(data)
        if foreign is not None:
            raise UnsupportedTypeError(
                f"The body is {foreign}, which is not taken here. Send the picture itself as {ACCEPTED}.",
                extra={"found": foreign, "accepted": ["image/jpeg", "image/png", "image/webp"]},
            )
        raise UndecodableImageError(f"The body is not a picture that is known here. Send {ACCEPTED}.")
    data, size_bytes = essentials(data, file_format), len(data)
    try:
        with Image.open(io.BytesIO(data), formats=(file_format,)) as image:
            width, height = image.size
            _refuse_many_pixels(width, height, limits)
            orientation = _orientation(image)
            mode = image.mode
    except AsfdError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels("far too many", limits) from None
    except Exception as error:
        # Pillow's parsers raise many types on hostile bytes; at this boundary all of them mean a damaged file.
        _LOG.debug("header refused: %r", error)
        raise UndecodableImageError(
            f"The {_shown(file_format)} header is damaged or cut short. Check that the whole file was sent."
        ) from None
    if orientation >= 5:
        width, height = height, width
    return ImageHeader(file_format, width, height, orientation, mode, size_bytes)


def decode(data: bytes, header: ImageHeader, long_side: int | None = None) -> Decoded:
    """Decode to upright RGB.

    long_side: the longest side that is needed, in pixels. The result's long side is at least that (or the original's,
    where that is smaller): JPEG is decoded at 1/2, 1/4 or 1/8 when this allows it, other formats are shrunk after
    decoding. None keeps the original size. Raises `UndecodableImageError` for damaged pixel data.
    """
    try:
        with Image.open(io.BytesIO(essentials(data, header.format)), formats=(header.format,)) as image:
            if long_side is not None and header.format == "JPEG":
                _draft(image, long_side)
            image.load()
            picture = _eight_bit(image)
            if long_side is not None and header.format != "JPEG":
                # Before anything else: sixteen bits, palettes and transparency take several times the memory of RGB.
                picture = _reduce(picture, long_side)
            picture = _rgb(picture)
            turn = _UPRIGHT.get(header.orientation)
            if turn is not None:
                picture = picture.transpose(turn)
            if picture is image:
                # It may wait for the engine, and a decoder keeps the file and frames of its own.
                picture = image.copy()
            picture.info.clear()  # or profiles and comments would get into pictures that are made of it
    except MemoryError:
        raise TooLargeError(
            f"There is not enough memory to decode {header.width} x {header.height} pixels. Send a smaller picture."
        ) from None
    except Exception as error:
        _LOG.debug("pixels refused: %r", error)
        raise UndecodableImageError(
            f"The {_shown(header.format)} file is damaged or cut short: its header is fine, its pixels are not. "
            "Check that the whole file was sent."
        ) from None
    return Decoded(picture, header.width, header.height)


def _refuse_many_pixels(width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise UndecodableImageError(f"The header says {width} x {height} pixels: the file is damaged.")
    if width * height > limits.max_pixels:
        raise _too_many_pixels(f"{width} x {height}", limits)


def _too_many_pixels(found: str, limits: Limits) -> TooLargeError:
    return TooLargeError(
        f"The picture has {found} pixels; at most {limits.max_pixels / 1e6:g} megapixels are taken. Send it smaller.",
        extra={"max_pixels": limits.max_pixels},
    )


def _shown(file_format: Format) -> str:
    return "WebP" if file_format == "WEBP" else file_format


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none or it is damaged: a bad tag must not cost the client the picture."""
    said = (image.info.get(name) or b"" for name in ("exif", "Raw profile type exif"))
    if any(len(one) > _MAX_EXIF_BYTES for one in said):
        return 1
    try:
        # The base class's method, because PNG's own decodes the whole picture in search of a chunk behind it.
        value = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except Exception as error:
        _LOG.debug("EXIF ignored: %r", error)
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _draft(image: Image.Image, long_side: int) -> None:
    """Let libjpeg decode at a fraction whose long side is still at least `long_side`."""
    width, height = image.size
    longest = max(width, height)
    if 0 < long_side < longest:
        # Rounded down, so that the short side never asks for a larger fraction than the long one.
        image.draft(None, (max(1, width * long_side // longest), max(1, height * long_side // longest)))


def _eight_bit(image: Image.Image) -> Image.Image:
    """L, RGB or CMYK, with alpha where anything is transparent: what can be averaged over neighbours."""
    if image.mode.startswith("I"):  # 16-bit greyscale
        high = np.asarray(image) >> 8
        return Image.fromarray(np.clip(high, 0, 255, out=high).astype(np.uint8))
    if image.has_transparency_data:
        return image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
    return image.convert("L") if image.mode == "1" else image.convert("RGB") if image.mode == "P" else image


def _reduce(image: Image.Image, long_side: int) -> Image.Image:
    factor = max(image.size) // (_REDUCING_GAP * long_side)
    return image.reduce(factor) if factor >= 2 else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA"):
        layer = image.convert("RGBA")
        page = Image.new("RGB", layer.size, (255, 255, 255))
        page.paste(layer, mask=layer.getchannel("A"))
        return page
    return image if image.mode == "RGB" else image.convert("RGB")
