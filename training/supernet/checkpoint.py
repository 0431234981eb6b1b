"""Supernets on disk: reading them back, and cutting a path out of one as a checkpoint of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from training.engine import checkpoint
from training.models.detector import Detector
from training.supernet.config import SupernetConfig
from training.supernet.loop import build_supernet
from training.supernet.network import Supernet
from training.supernet.path import SinglePath


def supernet_config(content: dict[str, Any]) -> SupernetConfig:
    """The configuration in a supernet's checkpoint. Raises ValueError where this version does not know it."""
    try:
        return TypeAdapter(SupernetConfig).validate_python(content["config"])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"the checkpoint is of another version: {place}: {first['msg']}") from None


def load_supernet(path: Path) -> tuple[Supernet, dict[str, Any]]:
    """A supernet with its weights, in eval mode, and the whole checkpoint.

    Raises FileNotFoundError, and ValueError where the file is no supernet's.
    """
    content = checkpoint.read(path, "supernet")
    supernet = build_supernet(supernet_config(content))
    try:
        supernet.load_state_dict(content["supernet"])
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit its own description: {str(error).splitlines()[-1].strip()}") from error
    return supernet.eval(), content


def save_cut(out: Path, detector: Detector, path: SinglePath, content: dict[str, Any]) -> None:
    """Write a path's detector as a checkpoint like those of `python -m training train`: for evaluation, for export, and
    to start a training of its own from (`--init`).

    detector: cut out of the supernet of `content`, its norms measured anew.
    """
    config = dict(content["config"]["train"])
    config["model"] = checkpoint.as_plain(path.config("autofae", content["config"]["genotype"]))
    state = detector.state_dict()
    seen = {"step": content["step"], "images": content["images"], "seconds": content["seconds"], "best": -1.0}
    checkpoint.save(
        out, {"config": config, "model": state, "ema": state, "progress": seen, "stages": content["stages"],
              "steps": content["steps"]}
    )  # fmt: skip
