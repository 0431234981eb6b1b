"""Checkpoints: everything that a run needs to go on, written atomically, loadable with `weights_only`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from service.repository.store import sha256_of
from training.data.cache import abandoned
from training.models.anchors import AnchorConfig
from training.models.detector import Detector, DetectorConfig, build_detector
from training.models.necks import NeckOptions


def save(path: Path, content: dict[str, Any]) -> None:
    """Write beside the target and rename, so that a cut-off write never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(content, partial)
    partial.replace(path)


def remove_partials(folder: Path) -> None:
    """Delete what writes that were cut off have left in `folder`; those of processes that still live stay."""
    for partial in folder.glob(".*.pt.*"):
        if abandoned(partial.suffix[1:]):
            partial.unlink(missing_ok=True)


def read(path: Path, wanted: str = "config") -> dict[str, Any]:
    """Read a file of `save` to the CPU. Raises FileNotFoundError, and ValueError that names a file that is none, or
    has no entry `wanted`."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(content, dict) or wanted not in content:
        raise ValueError(f"{path} is not a checkpoint of this command")
    return content


def unfinished(path: Path, main: bool) -> dict[str, Any] | None:
    """What a stopped run has left in `path`, None where nothing. What cut-off writes have left beside it is removed by
    the `main` process. Raises ValueError where it cannot be read."""
    if main:
        remove_partials(path.parent)
    return read(path) if path.is_file() else None


def fingerprint(path: Path) -> str:
    """SHA-256 in hex of a file of weights or, of a folder, of its `.pth` and `.json` files, names included. Raises
    FileNotFoundError."""
    if not path.is_dir():
        return sha256_of(path)
    files = sorted(file for file in path.iterdir() if file.suffix in (".pth", ".json"))
    listed = "".join(f"{file.name} {sha256_of(file)}\n" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def same_settings(stored: Any, asked: Any) -> bool:
    """Whether two configs, as plain containers, agree in all that `stored` has; an earlier version may lack some."""
    return json.dumps(stored, sort_keys=True) == json.dumps(_known_to(stored, asked), sort_keys=True)


def _known_to(stored: Any, asked: Any) -> Any:
    if not isinstance(stored, dict) or not isinstance(asked, dict):
        return asked
    return {name: _known_to(stored[name], value) for name, value in asked.items() if name in stored}


def check_origin(stored: Mapping[str, Any], asked: Mapping[str, Any], folder: Path, what: str) -> None:
    """Raises ValueError where the run in `folder`, `what` in words, came from something else than is `asked` for.

    Entries that `stored` lacks, being of an earlier version, are not compared.
    """
    for name, value in asked.items():
        if name in stored and stored[name] != value:
            was, now = (str(v)[:12] if v is not None else "none" for v in (stored[name], value))
            raise ValueError(
                f"{folder} holds {what} of another origin ({name}: {was}, not {now}); name another --out, or remove "
                "that folder"
            )


def load(path: Path) -> dict[str, Any]:
    """Read a training run's checkpoint to the CPU. Raises ValueError that names a file which is none."""
    content = read(path)
    if "ema" not in content:
        raise ValueError(f"{path} is not a checkpoint of `python -m training train`")
    return content


def detector_config(stored: dict[str, Any]) -> DetectorConfig:
    """Rebuild the model's config from a checkpoint's `config` entry."""
    fields = dict(stored["model"])
    anchors = dict(fields.pop("anchors"))
    anchors["strides"] = tuple(anchors["strides"])
    options = dict(fields.pop("neck_options", {}))
    for name in ("levels", "pair", "modules"):
        if options.get(name) is not None:
            options[name] = tuple(options[name])
    return DetectorConfig(anchors=AnchorConfig(**anchors), neck_options=NeckOptions(**options), **fields)


def load_detector(path: Path) -> tuple[Detector, dict[str, Any]]:
    """The detector with its averaged weights, in eval mode, and the whole checkpoint."""
    content = load(path)
    detector = build_detector(detector_config(content["config"]))
    weights: dict[str, Tensor] = content["ema"]
    # Shipped checkpoints hold half precision.
    full = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    detector.load_state_dict(full)
    return detector.eval(), content


def as_plain(config: Any) -> dict[str, Any]:
    """A dataclass as plain containers, which `weights_only` loading accepts."""
    return dataclasses.asdict(config)
