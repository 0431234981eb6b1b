"""Channels sorted by importance, so that a narrower slice keeps the best of them.

After Cai et al., Once-for-All, ICLR 2020: before widths shrink, channels are put in descending order of the L1 norm of
the weights that consume them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from training.supernet.network import Supernet
from training.supernet.path import SinglePath

_BACKBONE = "backbone"  # stands for its maps, whose channels stay
_SIDES = range(5, -1, -1)  # of the maps that are traced, as powers of two
# Functions that leave channels where they are. Maps that are added become one group.
_CHANNELWISE = frozenset(("relu", "add", "mul", "interpolate", "max_pool2d"))


class Axis(NamedTuple):
    """A dimension of a tensor of the supernet's state. tensor: its name there."""

    tensor: str
    dim: int


@dataclass(frozen=True)
class ChannelGroup:
    """Axes along which channels can be reordered together without changing what any path computes at full width.

    consumers: those of the axes that are convolutions' inputs.
    """

    axes: tuple[Axis, ...]
    consumers: tuple[Axis, ...]


def channel_groups(supernet: Supernet) -> list[ChannelGroup]:
    """Every group of channels of neck and head, as the paths themselves compute with them.

    Maps that are added, and maps that the same layer takes in different paths, have one group: each depth of the neck
    and each level feed the head, and each depth of a tower its predictors. A backbone's channels are in none.
    """
    trace = _Trace()
    for path in dict.fromkeys(_covering(supernet)):
        trace.run(supernet, path)
    return trace.groups()


@torch.no_grad()
def importance(group: ChannelGroup, state: Mapping[str, Tensor]) -> Tensor:
    """L1 norm of what consumes each channel, over all convolutions that do: float64 [C]. state: the supernet's."""
    norms = [state[name].double().abs().transpose(0, dim).flatten(1).sum(1) for name, dim in group.consumers]
    return torch.stack(norms).sum(0)


@torch.no_grad()
def sort_channels(
    supernet: Supernet, optimizer: Optimizer | None = None, others: Sequence[Mapping[str, Tensor]] = ()
) -> None:
    """Put the channels of neck and head in descending order of importance, in place.

    The outputs at full width stay what they were, up to rounding; narrow slices change. Gradients, and tensors of the
    optimiser's state that are of their parameter's shape (momenta, moments), are reordered with their parameters;
    others: further states with the supernet's names, such as `Ema.state`, that are to follow.
    """
    state = supernet.state_dict(keep_vars=True)
    followers: dict[str, list[Tensor]] = {
        name: [tensor.detach(), *_followers(tensor, optimizer), *(other[name] for other in others)]
        for name, tensor in state.items()
    }
    for group in channel_groups(supernet):
        order = importance(group, state).argsort(descending=True, stable=True)
        for name, dim in group.axes:
            for tensor in followers[name]:
                tensor.copy_(tensor.index_select(dim, order.to(tensor.device)))


def _followers(tensor: Tensor, optimizer: Optimizer | None) -> Iterator[Tensor]:
    if tensor.grad is not None:
        yield tensor.grad
    if optimizer is not None and tensor in optimizer.state:
        values: Iterable[Any] = optimizer.state[tensor].values()
        yield from (value for value in values if isinstance(value, Tensor) and value.shape == tensor.shape)


def _covering(supernet: Supernet) -> Iterator[SinglePath]:
    """Paths in which every layer meets every map that it meets in any path of the space, at full width.

    All patterns of modules, and each backbone and each depth of the head beside one of them: a backbone meets the first
    module alone, and of the head only its first convolutions meet the neck, which are in all of its depths.
    """
    space, largest = supernet.space, supernet.space.largest()
    patterns = dict.fromkeys(path.modules for path in space)
    yield from (SinglePath(largest.backbone, modules, largest.head_convs, largest.channels) for modules in patterns)
    for backbone in space.backbones:
        yield SinglePath(backbone, largest.modules, largest.head_convs, largest.channels)
    for convs in range(1, space.max_head_convs):
        yield SinglePath(largest.backbone, largest.modules, convs, largest.channels)


class _Trace(TorchFunctionMode):
    """Runs structures of paths on the meta device and notes which axes meet: a union-find over axes.

    It sees every function of torch that a neck or a head calls, and refuses those that it knows no rule for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._parents: dict[Axis, Axis] = {}
        self._consumers: set[Axis] = set()
        self._names: dict[int, str] = {}
        self._ends: set[str] = set()
        self._channels: dict[int, tuple[Tensor, Axis]] = {}  # with the map itself, so that no other gets its id

    def run(self, supernet: Supernet, path: SinglePath) -> None:
        """Note which axes meet in one path."""
        skeleton = supernet.skeleton(path)
        detector = skeleton.detector
        for module, _ in skeleton.twins:
            module.training = False  # a map of one cell has no statistics; `forward` sets the mode anew
        names = {id(tensor): name for name, tensor in supernet.state_dict(keep_vars=True).items()}
        own = detector.state_dict(keep_vars=True)
        self._names = {id(own[shared.name]): names[id(shared.whole())] for shared in skeleton.tensors}
        self._ends = {self._names[id(conv.weight)] for conv in detector.head.predictors()}
        self._channels = {}
        widths = detector.backbone.out_channels
        pyramid = [torch.empty(1, c, 1 << k, 1 << k, device="meta") for k, c in zip(_SIDES, widths, strict=True)]
        for level, x in enumerate(pyramid):
            self._channels[id(x)] = (x, Axis(_BACKBONE, level))
        with torch.no_grad(), self:
            detector.head(detector.neck(pyramid))

    def groups(self) -> list[ChannelGroup]:
        """What met, without what met a backbone's channels."""
        members: dict[Axis, list[Axis]] = {}
        for axis in self._parents:
            members.setdefault(self._root(axis), []).append(axis)
        return [
            ChannelGroup(tuple(axes), tuple(axis for axis in axes if axis in self._consumers))
            for axes in members.values()
            if all(axis.tensor != _BACKBONE for axis in axes)
        ]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
        known = [self._channels[id(tensor)][1] for tensor in tensors if id(tensor) in self._channels]
        if known and isinstance(result, Tensor):
            out = self._rule(func, tensors, known)
            if out is not None:
                self._channels[id(result)] = (result, out)
        return result

    def _rule(self, func: Callable[..., Any], tensors: list[Tensor], known: list[Axis]) -> Axis | None:
        """The axis of a function's result; None for predictions, which are in no group."""
        if func is torch.conv2d and tensors[0].shape[1] == tensors[1].shape[1]:  # not grouped
            weight, *bias = (self._names[id(tensor)] for tensor in tensors[1:])
            consumer = Axis(weight, 1)
            self._consumers.add(consumer)
            self._join(known[0], consumer)
            return None if weight in self._ends else self._join(Axis(weight, 0), *(Axis(name, 0) for name in bias))
        if func is F.batch_norm:
            return self._join(known[0], *(Axis(self._names[id(tensor)], 0) for tensor in tensors[1:]))
        if getattr(func, "__name__", "") in _CHANNELWISE and len(known) == sum(tensor.ndim > 0 for tensor in tensors):
            return self._join(*known)
        name = getattr(func, "__name__", repr(func))
        raise NotImplementedError(f"channels cannot be sorted: what {name} does to them is not known here")

    def _join(self, first: Axis, *others: Axis) -> Axis:
        root = self._root(first)
        for other in others:
            self._parents[self._root(other)] = root
        return root

    def _root(self, axis: Axis) -> Axis:
        while (parent := self._parents.setdefault(axis, axis)) != axis:
            axis = parent
        return axis
