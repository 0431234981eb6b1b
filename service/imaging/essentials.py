"""A JPEG or PNG file without what decoding does not need.

Pillow reads everything before the pixels in Python, segment by segment: comments, profiles, thumbnails, and text that
it inflates. A file built for it can keep it busy for many seconds. So the file is walked here first, in bounded time,
and Pillow gets what matters: the pixels, what they are decoded with, and what may say how the picture is turned.
"""

from __future__ import annotations

import re
from struct import Struct

from service.errors import UndecodableImageError
from service.imaging.sniff import Format

# Usual progressive files have about ten scans. Each one costs a pass over all pixels, so a small file with thousands
# of them would keep a thread busy for minutes.
MAX_JPEG_SCANS = 48
MAX_JPEG_SEGMENTS = 2000
MAX_PNG_CHUNKS = 20_000
_MAX_JUNK_BYTES = 1 << 16  # between two segments
# Four tables of at most 129 bytes, each maybe given twice; Pillow takes them apart number by number.
_MAX_TABLES_BYTES = 1200

_SOI, _EOI, _SOS, _DQT = 0xD8, 0xD9, 0xDA, 0xDB
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_CODING = frozenset({0xC4, 0xCC, _DQT, 0xDD})  # Huffman and arithmetic tables, quantisation, restart interval
_BARE = frozenset({0x01, _SOI, _EOI})  # markers that nothing follows
# By marker: how a segment starts that is wanted, once.
_WANTED_APPS = {
    0xE0: (b"JFIF",),
    0xE1: (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"),
    0xEE: (b"Adobe",),
}
# Padding and what is no marker (escaped data, restarts) is passed over, as libjpeg does.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_LENGTH = Struct(">H")

_PNG_START = 8
_PNG_CHUNK = Struct(">I4s")
_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
# Text that may hold EXIF or XMP, which may say how the picture is turned.
_PNG_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_PNG_KEYWORDS = (b"Raw profile type exif\0", b"Raw profile type APP1\0", b"XML:com.adobe.xmp\0")


def essentials(data: bytes, file_format: Format) -> bytes:
    """`data` with nothing but what decoding and orientation need; the same object where that is all there is.

    Raises `UndecodableImageError` where the structure is damaged or of a kind that no program writes. What stops short
    is passed on as far as it goes.
    """
    if file_format == "JPEG":
        return _jpeg(data)
    if file_format == "PNG":
        return _png(data)
    return data


def _jpeg(data: bytes) -> bytes:
    kept = [data[:2]]
    found: set[bytes] = set()
    tables, position, whole = 0, 2, True
    for _ in range(MAX_JPEG_SEGMENTS):
        marker = _MARKER.search(data, position, position + _MAX_JUNK_BYTES)
        if marker is None:
            return data[:position] if whole else b"".join(kept)
        start, kind = marker.start(), data[marker.end() - 1]
        whole = whole and start == position
        if kind == _SOS:
            _refuse_many_scans(data, start)
            return data if whole else b"".join((*kept, data[start:]))
        position = marker.end() if kind in _BARE else marker.end() + _length(data, marker.end())
        wanted = _wanted(kind, data, marker.end() + 2, found)
        if kind == _DQT:
            tables += position - start
        if tables > _MAX_TABLES_BYTES or (kind in _FRAMES and b"frame" in found):
            raise _damaged("it has more tables or frames than a picture can")
        if kind in _FRAMES:
            found.add(b"frame")
        if wanted:
            kept.append(data[start:position])
        whole = whole and wanted
    raise _damaged(f"it has more than {MAX_JPEG_SEGMENTS} segments before its pixels")


def _wanted(kind: int, data: bytes, body: int, found: set[bytes]) -> bool:
    """Whether a segment is kept; of comments and profiles only the first of each kind that matters."""
    if kind in _FRAMES or kind in _CODING:
        return True
    for start in _WANTED_APPS.get(kind, ()):
        if start not in found and data.startswith(start, body):
            found.add(start)
            return True
    return False


def _length(data: bytes, position: int) -> int:
    """Bytes of the segment whose length stands at `position`, the length itself included."""
    if position + 2 > len(data):
        return 2
    length = int(_LENGTH.unpack_from(data, position)[0])
    if length < 2:
        raise _damaged("a segment in it has no length")
    return length


def _refuse_many_scans(data: bytes, position: int) -> None:
    """position: of the first scan. What follows the picture, such as a film, is not looked at."""
    if data.count(b"\xff\xda", position) <= MAX_JPEG_SCANS:  # with what follows, and so more than there are
        return
    scans = 0
    for _ in range(MAX_JPEG_SEGMENTS):
        marker = _MARKER.search(data, position)
        if marker is None or data[marker.end() - 1] == _EOI:
            return
        kind, position = data[marker.end() - 1], marker.end()
        scans += kind == _SOS
        if scans > MAX_JPEG_SCANS:
            raise UndecodableImageError(
                f"The JPEG has more than {MAX_JPEG_SCANS} scans, which is the most that are decoded. "
                "Save it again with usual settings."
            )
        if kind not in _BARE:
            position += _length(data, position)
    raise _damaged(f"it has more than {MAX_JPEG_SEGMENTS} segments between its scans")


def _png(data: bytes) -> bytes:
    kept: list[bytes] = []
    found: set[bytes] = set()
    run = 0  # where what is kept next starts
    position = _PNG_START
    for _ in range(MAX_PNG_CHUNKS):
        if position + 8 > len(data):
            break
        length, kind = _PNG_CHUNK.unpack_from(data, position)
        end = position + 12 + length
        if kind not in _PNG_PIXELS and not _wanted_chunk(kind, data, position + 8, found):
            kept.append(data[run:position])
            run = end
        position = end
        if kind == b"IEND":
            break
    else:
        raise UndecodableImageError(
            f"The PNG has more than {MAX_PNG_CHUNKS} chunks, which no program writes. Save it again."
        )
    if not kept and position >= len(data):
        return data
    return b"".join((*kept, data[run:position]))


def _wanted_chunk(kind: bytes, data: bytes, body: int, found: set[bytes]) -> bool:
    if kind == b"eXIf":
        key = kind
    elif kind in _PNG_TEXTS:
        key = next((word for word in _PNG_KEYWORDS if data.startswith(word, body)), b"")
    else:
        return False
    if not key or key in found:
        return False
    found.add(key)
    return True


def _damaged(what: str) -> UndecodableImageError:
    return UndecodableImageError(f"The JPEG header is damaged: {what}. Save the picture again with usual settings.")
