"""The manifest of one family member: the contract between `export/`, which writes it, and the service, which reads it.

There is one definition, here, on the side of the reader; `export/` imports it. It needs pydantic and nothing heavier.

A member's folder holds `manifest.json`, the files that it names, and a model card:

    models/d0/manifest.json
    models/d0/d0.onnx
    models/d0/CARD.md
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MANIFEST_NAME = "manifest.json"

Precision = Literal["fp32", "fp16", "int8"]
Family = Literal["paper", "machine"]
HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputSize(_Strict):
    """One fixed input size of the network, in pixels. Sides are multiples of 32, the backbone's stride."""

    height: int = Field(ge=32, le=4096, multiple_of=32)
    width: int = Field(ge=32, le=4096, multiple_of=32)

    @property
    def long_side(self) -> int:
        return max(self.height, self.width)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


class Thresholds(_Strict):
    """What the exported graph was built with (paper, section 5.1.1); a request can be stricter, never laxer."""

    score: float = Field(default=0.05, gt=0, lt=1)
    pre_nms_top_k: int = Field(default=2000, ge=1)
    nms_iou: float = Field(default=0.4, gt=0, lt=1)
    max_detections: int = Field(default=750, ge=1)


class ModelFile(_Strict):
    """One executable form of the member: a *variant* that the service can choose.

    The graph's contract (version 1):
    input  `images`: uint8 [N, H, W, 3], RGB, letterboxed to the top left; N dynamic, (H, W) one of `input_sizes`;
    output `num_detections`: int32 [N]; `boxes`: float32 [N, max_detections, 4], x1 y1 x2 y2 in input pixels;
           `scores`: float32 [N, max_detections], descending; rows past the count are zero.

    precision: what it computes in; weights_precision: what its file stores.
    """

    variant: Name
    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(gt=0)
    precision: Precision
    weights_precision: Precision
    nms: Literal["plain", "onnx"]
    opset: int = Field(ge=17)

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        return _inside(value)

    @property
    def for_gpus(self) -> bool:
        """Whether only GPUs are served with it: float16 is no faster on CPUs, and INT8 with plain NMS is quantised for
        TensorRT."""
        return self.precision == "fp16" or (self.precision == "int8" and self.nms == "plain")


class Plan(_Strict):
    """One variant, compiled by TensorRT for one kind of GPU. The graph's contract is that of its `ModelFile`.

    variant: of the ONNX file that it was built from, and model_sha256 that file's hash; path: relative to the member's
    folder; tensorrt: the builder's version, such as 10.16.1.11; compute_capability: of the GPU that it was built on,
    such as 9.0, and gpu its name; max_batch: pictures a run; input_sizes: one optimisation profile each, in this order;
    built: ISO 8601 date. version_compatible: later versions run it too; hardware_compatible: the GPUs that run it too.
    nms: `plain` is the graph's own; `efficient` is TensorRT's plugin, which must be registered to load the plan.
    """

    variant: Name
    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(gt=0)
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tensorrt: str = Field(pattern=r"^[0-9]+(\.[0-9]+)+")
    compute_capability: str = Field(pattern=r"^[0-9]+\.[0-9]+$")
    gpu: str
    precision: Precision
    max_batch: int = Field(ge=1)
    input_sizes: tuple[InputSize, ...] = Field(min_length=1)
    version_compatible: bool = False
    hardware_compatible: HardwareCompatibility = "none"
    nms: Literal["plain", "efficient"] = "plain"
    built: str

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        return _inside(value)

    @model_validator(mode="after")
    def _sizes_differ(self) -> Self:
        if len(set(self.input_sizes)) != len(self.input_sizes):
            raise ValueError(f"input_sizes must differ, got {', '.join(map(str, self.input_sizes))}")
        return self


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{value!r} must be a relative path inside the member's folder")
    return value


class Accuracy(_Strict):
    """Average precision of one variant on named data, by one protocol, every picture resized to `long_side`."""

    variant: Name
    dataset: str
    split: str
    protocol: str
    long_side: int = Field(gt=0)
    ap50: float = Field(ge=0, le=1)
    ap: float = Field(ge=0, le=1, description="AP averaged over IoU 0.50:0.05:0.95")


class Architecture(_Strict):
    """Enough to rebuild the network and to tell a reader what it is.

    single_path: as Table 7 prints it, such as R50-FAE-Hx3-192; empty where the neck is not AutoFAE.
    """

    backbone: str
    neck: str
    single_path: str = ""
    genotype: dict[str, Any] | None = None
    head_convs: int = Field(ge=0)
    channels: int = Field(ge=1)
    parameters: int = Field(gt=0)
    gmacs_vga: float = Field(gt=0, description="multiply-accumulates of one 480x640 picture, in units of 1e9")


class Stage(_Strict):
    """One stage of training."""

    recipe: str
    images: int = Field(ge=0)
    hours: float = Field(ge=0)


class Provenance(_Strict):
    """How the weights came to be. images_seen and train_hours count all stages; recipe is that of the last.

    checkpoint_sha256: of the checkpoint that was exported; empty in manifests older than the field.
    """

    recipe: str
    data: str
    images_seen: int = Field(ge=0)
    seed: int
    hardware: str
    train_hours: float = Field(ge=0)
    finished: str = Field(description="ISO 8601 date")
    commit: str = ""
    checkpoint_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    stages: tuple[Stage, ...] = Field(default=(), description="oldest first; empty where there was one")


class Manifest(_Strict):
    """`manifest.json` of one member. Unknown fields and unknown versions are refused.

    family: `paper` is Table 7's, `machine` was found for the hardware `found_for` within `budget_ms` milliseconds.
    trained: false for fresh weights, which are there to be timed and are never served.
    """

    schema_version: Literal[1] = 1
    member: Name
    title: str
    family: Family = "paper"
    budget_ms: float | None = Field(default=None, gt=0)
    found_for: str = ""
    trained: bool = True
    architecture: Architecture
    input_sizes: tuple[InputSize, ...] = Field(min_length=1)
    thresholds: Thresholds = Thresholds()
    files: tuple[ModelFile, ...] = Field(min_length=1)
    plans: tuple[Plan, ...] = ()
    accuracy: tuple[Accuracy, ...] = ()
    provenance: Provenance

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        machine = self.family == "machine"
        if (self.budget_ms is not None) != machine or bool(self.found_for) != machine:
            raise ValueError("budget_ms and found_for belong to members of a machine family, and to every one of them")
        names = [file.variant for file in self.files]
        if len(set(names)) != len(names):
            raise ValueError(f"variant names must differ, got {names}")
        strangers = {row.variant for row in self.accuracy} - set(names)
        if strangers:
            raise ValueError(f"accuracy names variants that no file has: {sorted(strangers)}")
        strangers = {plan.variant for plan in self.plans} - set(names)
        if strangers:
            raise ValueError(f"plans name variants that no file has: {sorted(strangers)}")
        paths = [plan.path for plan in self.plans]
        if len(set(paths)) != len(paths):
            raise ValueError(f"paths of plans must differ, got {paths}")
        return self

    def ap50(self, variant: str, long_side: int) -> float | None:
        """AP.50 of `variant` at `long_side` on the first data set listed, or None where it was not measured. For a
        float16 variant that of the member's float32 one stands in; INT8 costs accuracy, and so has none but its own."""
        half = any(file.variant == variant and file.precision == "fp16" for file in self.files)
        full = [file.variant for file in self.files if file.precision == "fp32"][:1] if half else []
        for name in (variant, *full):
            for row in self.accuracy:
                if row.variant == name and row.long_side == long_side:
                    return row.ap50
        return None
