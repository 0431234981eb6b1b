"""The things that an ablation changes, each against one base configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from training.config import TrainConfig
from training.data.crops import CropConfig
from training.data.dataset import DataConfig
from training.data.photometric import PhotometricConfig
from training.data.rotation import RotationConfig
from training.models.distillation import DistillConfig
from training.models.matching import MatchConfig
from training.recipes import paper, paper_adamw

Kind = Literal["recipe", "data"]


@dataclass(frozen=True)
class Change:
    """One row of an ablation table. about: what differs from the base, in words; taught: it needs a teacher."""

    name: str
    kind: Kind
    about: str
    apply: Callable[[TrainConfig], TrainConfig]
    taught: bool = False


BASE = "base"


def changes(sources: Mapping[str, tuple[str, ...]]) -> dict[str, Change]:
    """Every change, by name. sources: kinds of photos to leave out one at a time, each a list of source folders."""
    rows = [Change(BASE, "recipe", "the base itself", lambda c: c)]
    rows += _crops() + _pixels() + _losses() + _structure() + _labels()
    rows.append(Change("distil", "recipe", "loss: a teacher's scores and boxes too", _distil, taught=True))
    rows += [
        Change(f"photos-{percent}", "data", f"{percent} % of the photos", _data(fraction=percent / 100))
        for percent in (25, 50)
    ]
    rows += [
        Change(f"without-{name}", "data", f"without {', '.join(folders)}", _data(leave_out=folders))
        for name, folders in sources.items()
    ]
    return {row.name: row for row in rows}


def _crops() -> list[Change]:
    return [
        Change("square-crops", "recipe", "crops: sample redistribution, squares of 0.3 .. 2.0",
               _crop(CropConfig(face=0.0, square=1.0))),
        Change("anchor-crops", "recipe", "crops: data-anchor sampling alone", _crop(CropConfig(face=0.0, anchor=1.0))),
        Change("face-crops", "recipe", "crops: a face at log-uniform scale, 0.6; whole photos", _crop(CropConfig())),
    ]  # fmt: skip


def _pixels() -> list[Change]:
    def colour(**fields: Any) -> Callable[[TrainConfig], TrainConfig]:
        return lambda c: replace(c, photometric=replace(c.photometric, **fields))

    none = PhotometricConfig(0, 0, 0, 0, 0, 0, 0)
    return [
        Change("no-colour", "recipe", "pixels: no change of colour", lambda c: replace(c, photometric=none)),
        Change("grey", "recipe", "pixels: 0.15 of the crops grey", colour(gray=0.15)),
        Change("blur", "recipe", "pixels: 0.1 blurred", colour(blur=0.1)),
        Change("noise", "recipe", "pixels: 0.1 with noise", colour(noise=0.1)),
        Change("jpeg", "recipe", "pixels: 0.3 with JPEG's losses", colour(jpeg=0.3)),
        Change("rotation", "recipe", "pixels: 0.3 rotated by up to 20 degrees",
               lambda c: replace(c, rotation=RotationConfig(0.3, 20.0))),
    ]  # fmt: skip


def _losses() -> list[Change]:
    def loss(**fields: Any) -> Callable[[TrainConfig], TrainConfig]:
        return lambda c: replace(c, loss=replace(c.loss, **fields))

    return [
        Change("three-best", "recipe", "assignment: IoU 0.4 and each face's three best anchors",
               loss(match=MatchConfig(best=3))),
        Change("atss", "recipe", "assignment: ATSS, 9 candidates a level", loss(match=MatchConfig(kind="atss"))),
        Change("simota", "recipe", "assignment: SimOTA", loss(match=MatchConfig(kind="simota"))),
        Change("quality-focal", "recipe", "score: quality focal loss", loss(cls="quality_focal")),
        Change("varifocal", "recipe", "score: varifocal loss", loss(cls="varifocal")),
        Change("giou", "recipe", "box: GIoU, weight 2", loss(box="giou", box_weight=2.0)),
        Change("diou", "recipe", "box: DIoU, weight 2", loss(box="diou", box_weight=2.0)),
    ]  # fmt: skip


def _structure() -> list[Change]:
    def model(**fields: Any) -> Callable[[TrainConfig], TrainConfig]:
        return lambda c: replace(c, model=replace(c.model, **fields))

    def optim(**fields: Any) -> Callable[[TrainConfig], TrainConfig]:
        return lambda c: replace(c, optim=replace(c.optim, **fields))

    return [
        Change("iou-branch", "recipe", "head: predicts each box's IoU", model(iou_branch=True)),
        Change("group-norm", "recipe", "head: group norm", model(head_norm="group")),
        Change("no-norm", "recipe", "head: no norm", model(head_norm="none")),
        Change("no-average", "recipe", "no moving average of the weights", optim(ema=0.0)),
        Change("sgd", "recipe", "optimiser: the paper's SGD, two drops", lambda c: replace(c, optim=paper().optim)),
        Change("adamw", "recipe", "optimiser: AdamW, linear decay", lambda c: replace(c, optim=paper_adamw().optim)),
    ]  # fmt: skip


def _labels() -> list[Change]:
    return [
        Change("no-ignore", "recipe", "labels: ignore regions are background", _data(honour_ignore=False)),
        Change("cap-60", "recipe", "labels: at most 60 faces a crop, the rest ignored", _data(max_faces=60)),
        Change("min-5", "recipe", "labels: faces under 5 pixels ignored", _data(min_face=5.0)),
        Change("crowds-035", "recipe", "photos: crowds sampled at 0.35", _data(crowd_share=0.35)),
        Change("machine-05", "recipe", "photos: machine-labelled sampled at 0.5", _data(machine_share=0.5)),
        Change("machine-0", "recipe", "photos: no machine-labelled", _data(machine_share=0.0)),
    ]


def _distil(config: TrainConfig) -> TrainConfig:
    return replace(config, distill=DistillConfig())


def _crop(crops: CropConfig) -> Callable[[TrainConfig], TrainConfig]:
    return _data(crops=crops)


def _data(**fields: Any) -> Callable[[TrainConfig], TrainConfig]:
    def apply(config: TrainConfig) -> TrainConfig:
        data: DataConfig = replace(config.data, **fields)
        return replace(config, data=data)

    return apply
