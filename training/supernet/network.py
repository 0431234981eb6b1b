"""The supernet: every single path of a space in one set of shared weights (paper, section 4.3.1 and Fig. 5)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from training.models.anchors import AnchorConfig
from training.models.backbone import ResNetPyramid
from training.models.detector import Detector, DetectorConfig, Output, build_detector, initialize
from training.models.genotype import AutoFAEGenotype
from training.models.head import Head
from training.models.necks import build_neck
from training.models.necks.autofae import AutoFAEModule
from training.models.necks.base import Laterals
from training.supernet.path import PathSpace, SinglePath

_CACHED_PATHS = 128  # of the structures kept; the largest takes some 3 MB


@dataclass(frozen=True)
class SharedTensor:
    """A tensor of a path's neck or head, and where the supernet has it.

    name: in the stand-alone detector; module, attribute: whose it is; shape: of the path's part, from the front.
    """

    name: str
    module: nn.Module
    attribute: str
    shape: torch.Size

    def whole(self) -> Tensor:
        """The supernet's own tensor, at full width."""
        tensor: Tensor = getattr(self.module, self.attribute)
        return tensor

    def slice(self) -> Tensor:
        """A view of the first channels along every dimension that is smaller; the tensor itself where none is."""
        tensor = self.whole()
        for dim, size in enumerate(self.shape):
            if tensor.shape[dim] != size:
                tensor = tensor.narrow(dim, 0, size)
        return tensor

    def packed(self) -> Tensor:
        """The slice without gaps in memory, which convolutions would make of it anyhow, differentiable.

        A slice along the first dimension alone, such as every statistic of a batch norm, has no gaps and stays a view.
        """
        part = self.slice()
        return part if part.shape[1:] == self.whole().shape[1:] else part.clone()


@dataclass(frozen=True)
class Skeleton:
    """The structure of a path's detector: the supernet's backbone itself; neck and head are on the meta device.

    twins: every module of neck and head, and the supernet's module that it stands for; tensors: those of neck and head.
    """

    detector: Detector
    twins: tuple[tuple[nn.Module, nn.Module], ...]
    tensors: tuple[SharedTensor, ...]


class Backbones(nn.ModuleDict):
    """Backbones side by side, by name."""

    def __getitem__(self, key: str) -> ResNetPyramid:
        backbone = super().__getitem__(key)
        assert isinstance(backbone, ResNetPyramid)
        return backbone


class Supernet(nn.Module):
    """All backbones of `space` side by side, laterals for each, and AutoFAE modules and a head at maximal size.

    forward: float [N, 3, H, W], normalised, and a path of `space` -> `Output` of that path's detector. A path takes its
    backbone whole, the first of the stacked modules and of the head's convolutions, and the first channels of each.
    Gradients reach just these parts; parameters of which no part was used keep the gradient None, and the unused part
    of one that was used gets zeros. In training mode the statistics of the parts' batch norms are updated in place.

    Beware of optimisers with momentum or weight decay, which also move what had a gradient of zero.
    """

    def __init__(self, space: PathSpace, genotype: AutoFAEGenotype, anchors: AnchorConfig | None = None) -> None:
        """Fresh weights, initialised as `build_detector` does. genotype: of AutoFAE or AutoFA.

        Raises ValueError where the genotype has no AutoFA, which every module of every path keeps, or other levels
        than the backbones.
        """
        super().__init__()
        if not genotype.top_down:
            raise ValueError(
                "a supernet stacks modules whose AutoFE may be skipped, but this genotype has AutoFE alone"
            )
        anchors = anchors or AnchorConfig()
        self.space, self.anchor_config = space, anchors
        self._genotype = genotype.model_dump_json()
        width = space.channels[-1]
        self.backbones = Backbones({name: ResNetPyramid(name) for name in space.backbones})
        maps = {name: self.backbones[name].out_channels for name in space.backbones}
        if any(len(genotype.levels) != len(channels) for channels in maps.values()):
            raise ValueError(f"the genotype has the levels {genotype.levels}, but a backbone makes those from 2 to 7")
        self.laterals = nn.ModuleDict({name: Laterals(channels, width) for name, channels in maps.items()})
        self.stacked = nn.ModuleList(AutoFAEModule(width, genotype) for _ in range(space.max_modules))
        self.head = Head(width, space.max_head_convs, len(anchors.strides))
        initialize(self, skip=self.head.predictors())
        # Structures of paths: no submodules, and so neither in the state nor moved with the weights.
        self._skeletons: OrderedDict[SinglePath, Skeleton] = OrderedDict()

    def forward(self, images: Tensor, path: SinglePath) -> Output:
        """Run one path. Raises ValueError where the space does not have it."""
        skeleton = self.skeleton(path)
        for module, twin in skeleton.twins:
            if module.training != twin.training:
                module.training = twin.training
        parts = {tensor.name: tensor.packed() for tensor in skeleton.tensors}
        output: Output = torch.func.functional_call(skeleton.detector, parts, (images,))
        return output

    def config(self, path: SinglePath) -> DetectorConfig:
        """The stand-alone detector of a path. Raises ValueError where the space does not have it."""
        if path not in self.space:
            space = self.space
            raise ValueError(
                f"the supernet does not have the path {path}: it has the backbones {', '.join(space.backbones)}, "
                f"up to {space.max_modules} modules and {space.max_head_convs} head convolutions, "
                f"and the widths {', '.join(map(str, space.channels))}"
            )
        return replace(path.config("autofae", self._genotype), anchors=self.anchor_config)

    def tensors_of(self, path: SinglePath) -> dict[str, Tensor]:
        """Parameters and buffers of a path under the stand-alone detector's names and in its order: views of the
        supernet's own, backbone's included. Raises ValueError where the space does not have the path."""
        shared = {tensor.name: tensor.slice() for tensor in self.skeleton(path).tensors}
        own: dict[str, Tensor] = self.backbones[path.backbone].state_dict(prefix="backbone.", keep_vars=True)
        return {**own, **shared}

    def cut(self, path: SinglePath) -> Detector:
        """A path's detector with copies of its weights, in eval mode: just what `forward` computes in that mode.

        Its batch norms have the statistics of all paths together; see `calibration.recalibrate`.
        Raises ValueError where the space does not have the path.
        """
        copies = {name: tensor.detach().clone() for name, tensor in self.tensors_of(path).items()}
        with torch.device("meta"):
            detector = build_detector(self.config(path))
        detector.load_state_dict(copies, assign=True)
        return detector.eval()

    def skeleton(self, path: SinglePath) -> Skeleton:
        """The structure of a path, kept for its next use. Raises ValueError where the space does not have the path."""
        if path in self._skeletons:
            self._skeletons.move_to_end(path)
            return self._skeletons[path]
        config, backbone = self.config(path), self.backbones[path.backbone]
        with torch.device("meta"):  # as `build_detector` does, but without a backbone of its own, which takes longest
            neck = build_neck(config.neck, backbone.out_channels, config.channels, config.neck_options)
            head = Head(config.channels, config.head_convs, len(config.anchors.strides), config.head_norm)
        detector = Detector(backbone, neck, head, config.anchors)
        twins = {name: (module, self._twin(path, name)) for name, module in _neck_and_head(detector)}
        skeleton = Skeleton(detector, tuple(twins.values()), tuple(_shared(twins)))
        self._skeletons[path] = skeleton
        if len(self._skeletons) > _CACHED_PATHS:
            self._skeletons.popitem(last=False)
        return skeleton

    def _twin(self, path: SinglePath, name: str) -> nn.Module:
        """The supernet's module that the stand-alone detector's module `name` stands for."""
        for prefix, own in (("neck.lateral", f"laterals.{path.backbone}"), ("neck.stacked", "stacked")):
            if name.startswith(prefix):
                return self.get_submodule(own + name.removeprefix(prefix))
        return self if name == "neck" else self.get_submodule(name)


def _neck_and_head(detector: Detector) -> Iterator[tuple[str, nn.Module]]:
    for part in ("neck", "head"):
        yield from detector.get_submodule(part).named_modules(prefix=part)


def _shared(twins: dict[str, tuple[nn.Module, nn.Module]]) -> Iterator[SharedTensor]:
    for name, (module, twin) in twins.items():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for attribute, tensor in own:
            yield SharedTensor(f"{name}.{attribute}", twin, attribute, tensor.shape)
