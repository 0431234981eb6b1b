"""Start a training run from the weights of another: a checkpoint, or a member that was shipped as ONNX.

Export folds every batch norm into the convolution before it. Here the norms are put back: the folded weights become
the convolution's, at the length that filters have at the start of training, and each norm gets the statistics that the
convolution's output has on real pictures, with the scale and shift that undo them. In eval mode the detector then
computes what the file computes; in training mode it goes on with norms that fit its weights.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from service.repository.manifest import MANIFEST_NAME
from service.repository.store import RepositoryError, load_manifest
from training.engine import checkpoint
from training.models.backbone import BackboneName
from training.models.detector import Detector, DetectorConfig, build_detector
from training.models.necks import NeckOptions
from training.supernet.path import SinglePath


@dataclass(frozen=True)
class _Call:
    """One use of a convolution in a forward pass, and the norm that its output went through, if any."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None


_NO_LENGTH = 1e-6  # of a filter that holds nothing

Keep = Literal["all", "body", "backbone"]


def start_from(
    path: Path, model: Detector, config: DetectorConfig, pictures: Iterable[Tensor], keep: Keep = "all"
) -> list[dict[str, Any]]:
    """Give `model`, built from `config`, the weights in `path`: a checkpoint's average, or an exported `.onnx` file.

    keep: what is taken of them, all, backbone and neck (`body`), or the backbone; the rest may then be of another kind
    than `config`'s. An exported file is read as its manifest describes it, or as `config` does where it has none.
    pictures: as in `load_exported`. Returns the training that the weights have had: stages as `stage` describes them,
    oldest first. Raises FileNotFoundError, and ValueError where the weights are not of this architecture.
    """
    if path.suffix == ".onnx":
        plain = config if keep == "all" else _exported_config(path, config, keep)
        source = build_detector(plain).to(next(model.parameters()).device)
        load_exported(source, path, pictures)
        past = _stages_of_member(path)
    else:
        source, content = checkpoint.load_detector(path)
        past = _stages_of_checkpoint(content)
    parts = {"all": ("",), "body": ("backbone.", "neck."), "backbone": ("backbone.",)}[keep]
    state = {k: v for k, v in source.state_dict().items() if k.startswith(parts)}
    wanted = {k for k in model.state_dict() if k.startswith(parts)}
    if lacking := sorted(wanted - state.keys()):
        raise ValueError(f"{path} holds another architecture: it has no {lacking[0]}")
    try:
        model.load_state_dict({**model.state_dict(), **state})
    except RuntimeError as error:
        raise ValueError(f"{path} holds another architecture: {str(error).splitlines()[-1].strip()}") from error
    return past


def _exported_config(path: Path, config: DetectorConfig, keep: Keep) -> DetectorConfig:
    """What an exported file holds, as far as it can be known: exports have batch norm and no IoU branch."""
    plain = dataclasses.replace(config, head_norm="batch", iou_branch=False)
    if keep == "body":
        return plain
    try:
        made = load_manifest(path.parent / MANIFEST_NAME).architecture
    except RepositoryError:
        return plain
    return dataclasses.replace(
        plain, neck=made.neck, channels=made.channels, head_convs=made.head_convs, neck_options=NeckOptions()
    )


class Trained(NamedTuple):
    """A trained detector, in eval mode; config: what it is built from; stages: the training that it has had."""

    detector: Detector
    config: DetectorConfig
    stages: list[dict[str, Any]]


def read_detector(path: Path, pictures: Iterable[Tensor] | None) -> Trained:
    """The detector in a checkpoint (its average) or in a member's full-precision `.onnx`, on the CPU.

    An exported file is read as the manifest beside it describes it; pictures: as in `load_exported`. Raises
    FileNotFoundError, and ValueError where the file holds no trained detector.
    """
    if path.suffix == ".onnx":
        config = _described_config(path)
        detector = build_detector(config)
        load_exported(detector, path, pictures)
        return Trained(detector.eval(), config, _stages_of_member(path))
    detector, content = checkpoint.load_detector(path)
    return Trained(detector, checkpoint.detector_config(content["config"]), _stages_of_checkpoint(content))


def _described_config(path: Path) -> DetectorConfig:
    """The architecture that a manifest tells of. Raises ValueError where it tells of fresh weights."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    try:
        manifest = load_manifest(path.parent / MANIFEST_NAME)
    except RepositoryError as error:
        raise ValueError(
            f"{path} needs the manifest of its member beside it, which tells what it holds: {error}"
        ) from None
    if not manifest.trained:
        raise ValueError(f"{path} holds fresh weights, which have learnt nothing")
    made = manifest.architecture
    options = NeckOptions(
        genotype=json.dumps(made.genotype) if made.genotype else "",
        modules=SinglePath.parse(made.single_path).modules if made.single_path else (),
    )
    backbone: BackboneName | None = next((name for name in get_args(BackboneName) if name == made.backbone), None)
    if backbone is None:
        raise ValueError(f"{path}: its manifest names the backbone {made.backbone!r}, which is not known")
    return DetectorConfig(
        backbone=backbone, neck=made.neck, channels=made.channels, head_convs=made.head_convs, neck_options=options
    )


def stage(recipe: str, images: int, seconds: float) -> dict[str, Any]:
    """One stage of training: which recipe, how many crops were seen, how long the steps took."""
    return {"recipe": recipe, "images": images, "seconds": seconds}


def _stages_of_checkpoint(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages that a run began with, and the run itself as the last."""
    done = content.get("progress", {})
    name = content["config"].get("recipe", "unknown")
    return [*content.get("stages", []), stage(name, done.get("images", 0), done.get("seconds", 0.0))]


def _stages_of_member(path: Path) -> list[dict[str, Any]]:
    """What the manifest beside an exported file tells of its training; an unknown stage where none can be read."""
    try:
        made = load_manifest(path.parent / MANIFEST_NAME).provenance
    except RepositoryError:
        return [stage("unknown", 0, 0.0)]
    if made.stages:
        return [stage(s.recipe, s.images, s.hours * 3600) for s in made.stages]
    return [stage(made.recipe, made.images_seen, made.train_hours * 3600)]


def load_exported(detector: Detector, path: Path, pictures: Iterable[Tensor] | None) -> None:
    """Give `detector` the weights of an exported file of the same architecture, in place.

    pictures: batches float [N, 3, H, W], normalised, over which the statistics of the norms are measured; None where
    the detector is not to be trained, which then computes what the file does.
    Raises FileNotFoundError, and ValueError where the file is not a full-precision export of this architecture.
    """
    folded = _read_convolutions(path)
    was_training = detector.training
    detector.eval()
    try:
        calls = _record(detector)
        _check(calls, folded, path)
        with torch.no_grad():
            scales = _assign(calls, folded)
            if pictures is not None:
                _lengthen(scales, calls)
                calibrate(detector, scales, pictures)
    finally:
        detector.train(was_training)


def _read_convolutions(path: Path) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of every Conv of an ONNX graph, in the order of execution."""
    import onnx
    from onnx import numpy_helper

    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:
        raise ValueError(f"{path} cannot be read as ONNX: {error}") from error
    stored: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        # Large weights are stored as float16 behind a Cast.
        if node.op_type in ("Cast", "Identity") and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
    found = []
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        tensors = [stored[name] for name in node.input[1:] if name in stored]
        if len(tensors) < len(node.input) - 1:
            raise ValueError(f"{path} holds quantised weights; start from the member's full-precision file")
        values = [torch.from_numpy(numpy_helper.to_array(tensor).astype("float32")) for tensor in tensors]
        found.append((values[0], values[1] if len(values) > 1 else None))
    return found


def _record(detector: Detector) -> list[_Call]:
    """Every use of a convolution in one forward pass, in order, found by hooks on a blank picture."""
    uses: list[tuple[nn.Conv2d, Tensor]] = []
    norms: dict[int, nn.BatchNorm2d] = {}

    def used(module: nn.Module, _args: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        uses.append((module, output))  # held, so that no later tensor takes its identity

    def normed(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        norms[id(args[0])] = module

    handles = [m.register_forward_hook(used) for m in detector.modules() if isinstance(m, nn.Conv2d)]
    handles += [m.register_forward_pre_hook(normed) for m in detector.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        with torch.no_grad():
            detector(torch.zeros(1, 3, 128, 128, device=next(detector.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return [_Call(conv, norms.get(id(output))) for conv, output in uses]


def _check(calls: list[_Call], folded: list[tuple[Tensor, Tensor | None]], path: Path) -> None:
    if len(calls) != len(folded):
        raise ValueError(
            f"{path} has {len(folded)} convolutions where this detector has {len(calls)}: another architecture"
        )
    for number, (call, (weight, bias)) in enumerate(zip(calls, folded, strict=True)):
        if weight.shape != call.conv.weight.shape or bias is None:
            raise ValueError(
                f"{path}: convolution {number} has weights {tuple(weight.shape)} where this detector has "
                f"{tuple(call.conv.weight.shape)}: another architecture, or norms that were not folded"
            )


def _assign(
    calls: list[_Call], folded: list[tuple[Tensor, Tensor | None]]
) -> dict[nn.BatchNorm2d, tuple[Tensor, Tensor]]:
    """Set convolutions, and norms to pass their input through; return each norm's (scale, shift).

    A convolution that several levels share was folded once a level: the first becomes its weight, and the others
    differ from it by a factor a channel, which is their norm's scale.
    """
    first: dict[nn.Conv2d, Tensor] = {}
    scales: dict[nn.BatchNorm2d, tuple[Tensor, Tensor]] = {}
    for call, (weight, bias) in zip(calls, folded, strict=True):
        assert bias is not None
        if call.conv not in first:
            first[call.conv] = weight
            call.conv.weight.copy_(weight)
            if call.conv.bias is not None:
                call.conv.bias.copy_(bias)
        if call.norm is None:
            continue
        base = first[call.conv].flatten(1)
        scale = (weight.flatten(1) * base).sum(dim=1) / base.square().sum(dim=1).clamp(min=1e-12)
        device = call.conv.weight.device
        scales[call.norm] = (scale.to(device), bias.to(device))
        _set_norm(call.norm, torch.zeros_like(scale), torch.ones_like(scale), scale, bias)
    return scales


def _lengthen(scales: dict[nn.BatchNorm2d, tuple[Tensor, Tensor]], calls: list[_Call]) -> None:
    """Give each filter before norms the length of He's initialisation, and the norms what makes up for it, in place.

    Folding divides a filter by the deviation of its output, which leaves the deep ones at a tenth of their length and
    less. Steps of Adam are as long for short filters, so they would overwrite in a few what these have learnt.
    """
    norms: dict[nn.Conv2d, set[nn.BatchNorm2d]] = {}
    for call in calls:
        if call.norm is not None:
            norms.setdefault(call.conv, set()).add(call.norm)
    bare = {call.conv for call in calls if call.norm is None}
    for conv in norms.keys() - bare:
        filters = conv.weight.flatten(1)
        fan_out = conv.weight.shape[0] * conv.weight[0, 0].numel()
        length = filters.norm(dim=1)
        wanted = math.sqrt(2.0 / fan_out * filters.shape[1])
        factor = torch.where(length > _NO_LENGTH, wanted / length.clamp(min=_NO_LENGTH), 1.0)
        conv.weight.mul_(factor[:, None, None, None])
        for norm in norms[conv]:
            scale, shift = scales[norm]
            scales[norm] = (scale / factor, shift)
            _set_norm(norm, torch.zeros_like(scale), torch.ones_like(scale), *scales[norm])


def _set_norm(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Make the norm compute scale * x + shift while it holds these statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_(scale * torch.sqrt(variance + norm.eps))
    norm.bias.copy_(shift + scale * mean)


def calibrate(
    detector: Detector, scales: dict[nn.BatchNorm2d, tuple[Tensor, Tensor]], pictures: Iterable[Tensor]
) -> None:
    """Measure what flows into each norm, then give it those statistics while it computes `scale * x + shift`.

    The detector is in eval mode, and its norms compute that already.
    """
    sums: dict[nn.Module, tuple[float, Tensor, Tensor]] = {}

    def seen(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].double()
        count, total, squares = sums.get(module, (0.0, torch.zeros((), dtype=x.dtype), torch.zeros((), dtype=x.dtype)))
        sums[module] = (
            count + x.numel() / x.shape[1],
            total.to(x.device) + x.sum(dim=(0, 2, 3)),
            squares.to(x.device) + x.square().sum(dim=(0, 2, 3)),
        )

    handles = [norm.register_forward_pre_hook(seen) for norm in scales]
    try:
        for batch in pictures:
            detector(batch)
    finally:
        for handle in handles:
            handle.remove()
    for norm, (scale, shift) in scales.items():
        if norm not in sums:
            raise ValueError("no picture was given to measure the norms' statistics on")
        count, total, squares = sums[norm]
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=1e-6)
        _set_norm(norm, mean.float(), variance.float(), scale, shift)
