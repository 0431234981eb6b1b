"""Read pictures from a request: a raw body or multipart fields `image`, in memory, counted while they stream in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from service.errors import (
    BadParameterError,
    MalformedRequestError,
    SlowBodyError,
    TooLargeError,
    UnsupportedTypeError,
)

FIELD = "image"
ACCEPTED_TYPES = ("image/jpeg", "image/png", "image/webp")
# Not precise, but harmless: the content is looked at anyway.
_TOLERATED_TYPES = frozenset((*ACCEPTED_TYPES, "image/jpg", "image/pjpeg", "application/octet-stream", "image/*", ""))
_MULTIPART = "multipart/form-data"
# What boundaries and part headers may add to the picture's own bytes.
_MULTIPART_OVERHEAD = 64 * 1024
_SPARE_PARTS = 15  # parts that are no pictures, before the form is refused as a whole


@dataclass(frozen=True, slots=True)
class Part:
    """One picture of a form. name: its file name as the client gave it, maybe empty."""

    name: str
    data: bytes


async def read_picture(request: Request, *, max_bytes: int, timeout_seconds: float) -> bytes:
    """The picture's bytes, maybe empty.

    Raises `UnsupportedTypeError` by the declared type, `TooLargeError` as soon as the limit is known to be broken,
    `SlowBodyError` when the body takes longer than `timeout_seconds`, `MalformedRequestError` and `BadParameterError`
    for multipart bodies, and starlette's `ClientDisconnect` when the client goes away.
    """
    declared, boundary = _declared(request)
    if declared == _MULTIPART:
        form = _Form(boundary, max_bytes, 1)
        await _stream(request, form.feed, max_bytes + _MULTIPART_OVERHEAD, max_bytes, timeout_seconds)
        return form.finish()[0].data
    if declared not in _TOLERATED_TYPES:
        raise _unsupported(declared)
    chunks: list[bytes] = []
    await _stream(request, chunks.append, max_bytes, max_bytes, timeout_seconds)
    return b"".join(chunks)


async def read_pictures(
    request: Request, *, max_bytes: int, max_total: int, most: int, timeout_seconds: float
) -> list[Part]:
    """The pictures of a form, in its order: 1 to `most` fields `image`.

    max_bytes: of one; max_total: of the body. Raises as `read_picture` does.
    """
    declared, boundary = _declared(request)
    if declared != _MULTIPART:
        raise UnsupportedTypeError(
            f"Content-Type {declared[:80]!r} is not taken here. Send {_MULTIPART} with a field {FIELD!r} for each "
            f"picture. With curl: -F {FIELD}=@one.jpg -F {FIELD}=@two.jpg.",
            extra={"accepted": [_MULTIPART]},
        )
    form = _Form(boundary, max_bytes, most)
    await _stream(request, form.feed, max_total + _MULTIPART_OVERHEAD, max_total, timeout_seconds)
    return form.finish()


def _declared(request: Request) -> tuple[str, bytes]:
    """(type, boundary) of the body."""
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedTypeError(f"Content-Encoding {encoding!r} is not taken: send the picture uncompressed.")
    return content_type.decode("latin-1").strip().lower(), options.get(b"boundary", b"")


async def _stream(
    request: Request, feed: Callable[[bytes], None], limit: int, told: int, timeout_seconds: float
) -> None:
    """Feed the body. limit: of its bytes; told: the limit that an error names."""
    _check_declared_length(request, limit, told)
    count = 0
    try:
        async with asyncio.timeout(timeout_seconds):
            async for chunk in request.stream():
                count += len(chunk)
                if count > limit:
                    raise _too_many_bytes(told)
                feed(chunk)
    except TimeoutError:
        raise SlowBodyError(
            f"Only {count} bytes arrived within {timeout_seconds:g} s. Send the body faster, or a smaller picture."
        ) from None


def _unsupported(declared: str) -> UnsupportedTypeError:
    hint = ""
    if declared == "application/x-www-form-urlencoded":
        hint = (
            " curl declares this unless told otherwise: add -H 'Content-Type: image/jpeg', or use -F image=@photo.jpg."
        )
    elif declared == "application/json":
        hint = " The picture is the body itself, not a JSON document."
    return UnsupportedTypeError(
        f"Content-Type {declared[:80]!r} is not taken. Send {', '.join(ACCEPTED_TYPES)}, "
        f"or {_MULTIPART} with the field {FIELD!r}.{hint}",
        extra={"accepted": [*ACCEPTED_TYPES, _MULTIPART]},
    )


def _check_declared_length(request: Request, limit: int, max_bytes: int) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and len(declared) < 20 and int(declared) > limit:
        raise _too_many_bytes(max_bytes, int(declared))


def _too_many_bytes(max_bytes: int, found: int | None = None) -> TooLargeError:
    start = f"The body has {found} bytes" if found is not None else "The body is too long"
    return TooLargeError(
        f"{start}; at most {max_bytes} bytes ({max_bytes / 2**20:g} MiB) are taken. Send a smaller picture.",
        extra={"max_bytes": max_bytes},
    )


@dataclass(slots=True)
class _Part:
    disposition: bytes = b""
    header_name: bytes = b""
    header_value: bytes = b""
    wanted: bool = False
    name: str = ""
    chunks: list[bytes] = field(default_factory=list)
    count: int = 0


@dataclass(slots=True)
class _Collected:
    part: _Part = field(default_factory=_Part)
    parts: int = 0
    ended: bool = False
    strangers: list[str] = field(default_factory=list)
    pictures: list[_Part] = field(default_factory=list)


class _Form:
    """A multipart body, of which only the fields `image` are kept, `most` of them."""

    def __init__(self, boundary: bytes, max_bytes: int, most: int) -> None:
        if not boundary:
            raise MalformedRequestError(
                f"The Content-Type {_MULTIPART} has no boundary. Let the HTTP client set this header itself."
            )
        self._max_bytes, self._most = max_bytes, most
        self._got = _Collected()
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_begin": self._header_begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise MalformedRequestError(f"The multipart boundary cannot be used: {error}.") from None

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MalformedRequestError(f"The multipart body is broken: {error}.") from None

    def finish(self) -> list[Part]:
        got = self._got
        if got.strangers:
            raise BadParameterError(
                got.strangers[0],
                f"The form field {got.strangers[0]!r} is not known: the picture goes into the field {FIELD!r}, "
                "everything else into the query, as in /detect?tier=standard.",
            )
        if got.parts and not got.ended:
            raise MalformedRequestError("The multipart body is cut short: its closing boundary is missing.")
        if not got.pictures:
            raise BadParameterError(FIELD, f"The form has no field {FIELD!r}. With curl: -F {FIELD}=@photo.jpg.")
        return [Part(part.name, b"".join(part.chunks)) for part in got.pictures]

    def _part_begin(self) -> None:
        self._got.part = _Part()
        self._got.parts += 1
        if self._got.parts > self._most + _SPARE_PARTS:
            raise MalformedRequestError(
                f"The form has more than {self._most + _SPARE_PARTS} parts; send "
                + ("the picture alone." if self._most == 1 else f"{self._most} pictures at most, and nothing else.")
            )

    def _header_begin(self) -> None:
        self._got.part.header_name = self._got.part.header_value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._got.part.header_name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._got.part.header_value += data[start:end]

    def _header_end(self) -> None:
        part = self._got.part
        if part.header_name.strip().lower() == b"content-disposition":
            part.disposition = part.header_value

    def _headers_finished(self) -> None:
        got = self._got
        _, options = parse_options_header(got.part.disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != FIELD:
            got.strangers.append(name[:64])
            return
        if len(got.pictures) == self._most:
            raise BadParameterError(
                FIELD,
                f"The form has the field {FIELD!r} twice; one request takes one picture. POST /detect/batch takes more."
                if self._most == 1
                else f"The form has more than {self._most} pictures. Send the rest in another request.",
            )
        got.part.wanted = True
        got.part.name = options.get(b"filename", b"").decode("utf-8", "replace")[:255]
        got.pictures.append(got.part)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._got.part
        if not part.wanted:
            return
        part.count += end - start
        if part.count > self._max_bytes:
            raise _too_many_bytes(self._max_bytes)
        part.chunks.append(data[start:end])

    def _end(self) -> None:
        self._got.ended = True
