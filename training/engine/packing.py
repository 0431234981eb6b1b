"""A checkpoint for the road: its averaged weights alone, in half precision, in parts of a size that can be sent."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from training.engine import checkpoint
from training.files import write_bytes, write_json

PACK_NAME = "pack.json"
_CARRIED = ("config", "progress", "stages", "steps")


class Part(BaseModel):
    """One part: its file's name, length in bytes, and hash."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    size: int
    sha256: str


class Pack(BaseModel):
    """`pack.json`. name, size, sha256: of the checkpoint that the parts make, in this order, one after another."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 1
    name: str
    size: int
    sha256: str
    parts: tuple[Part, ...]


def pack(source: Path, folder: Path, part_bytes: int) -> Pack:
    """Write what `export onnx` and `--init` need of a checkpoint into `folder`, in parts of at most `part_bytes`.

    Weights become float16; vectors (norms, biases), which are few and of which variances can be large, stay as they
    are. Parts have the whole's hash in their names, `pack.json` is written after them, and only then are those of an
    earlier pack removed, so that the folder always holds a whole pack. Raises FileNotFoundError, and ValueError
    where the file is no checkpoint or has weights beyond half precision.
    """
    if part_bytes < 1:
        raise ValueError(f"a part has at least one byte, not {part_bytes}")
    content = checkpoint.load(source)
    small: dict[str, Any] = {key: content[key] for key in _CARRIED if key in content}
    small["ema"] = {key: _halved(key, value, source) for key, value in content["ema"].items()}
    buffer = io.BytesIO()
    torch.save(small, buffer)
    whole = buffer.getvalue()
    digest, parts = _sha256(whole), []
    for number, start in enumerate(range(0, len(whole), part_bytes)):
        piece = whole[start : start + part_bytes]
        parts.append(Part(file=f"{source.name}.{digest[:8]}.{number:03d}", size=len(piece), sha256=_sha256(piece)))
        write_bytes(folder / parts[-1].file, piece)
    made = Pack(name=source.name, size=len(whole), sha256=digest, parts=tuple(parts))
    earlier = _files(folder)
    write_json(folder / PACK_NAME, made.model_dump())
    for name in earlier - {part.file for part in parts}:
        (folder / name).unlink(missing_ok=True)
    return made


def unpack(folder: Path, out: Path) -> Pack:
    """Check the parts in `folder`, join them, and write the checkpoint `out`.

    Raises FileNotFoundError and ValueError that name the part which is missing or damaged, and ValueError where
    another file than this is at `out`: a run's own checkpoint holds more than a pack does.
    """
    if out.name == "last.pt":
        raise ValueError(f"{out}: a run goes on from its last.pt, which a pack is too little for; name it best.pt")
    made = _read(folder)
    pieces = []
    for part in made.parts:
        path = folder / part.file
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, one of {len(made.parts)} parts; fetch it again")
        piece = path.read_bytes()
        if len(piece) != part.size:
            raise ValueError(f"{path} has {len(piece)} bytes instead of {part.size}; fetch it again")
        if _sha256(piece) != part.sha256:
            raise ValueError(f"{path} is damaged: its hash is not that of {PACK_NAME}; fetch it again")
        pieces.append(piece)
    whole = b"".join(pieces)
    if len(whole) != made.size or _sha256(whole) != made.sha256:
        raise ValueError(f"{folder / PACK_NAME} does not fit its own parts, which are whole; pack the checkpoint again")
    if out.is_file():
        if _sha256(out.read_bytes()) == made.sha256:
            return made
        raise ValueError(f"{out} is there already and is another file; name another --out, or remove it")
    write_bytes(out, whole)
    return made


def _halved(name: str, value: Tensor, source: Path) -> Tensor:
    if not value.is_floating_point() or value.ndim < 2:
        return value
    half = value.half()
    if not torch.isfinite(half).all():
        raise ValueError(f"{source}: {name} has values that are not finite or too large for half precision")
    return half


def _files(folder: Path) -> set[str]:
    """The parts of the pack in `folder`, none where there is none."""
    try:
        return {part.file for part in _read(folder).parts}
    except (OSError, ValueError):
        return set()


def _read(folder: Path) -> Pack:
    path = folder / PACK_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; {folder} holds no pack")
    try:
        made = Pack.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is no {PACK_NAME} of this command: {error.error_count()} faults") from None
    if any(Path(part.file).name != part.file for part in made.parts):
        raise ValueError(f"{path} names files outside its folder")
    return made


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
