"""Channels sorted by importance: what belongs together, what stays the same, and what changes."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from tests.training.supernets import random_pictures, small_genotype, tiny_supernet, use_thin_backbones
from training.engine.optim import Ema
from training.models.genotype import AutoFAEGenotype, genotype_of_kind
from training.models.necks import autofae
from training.supernet.importance import Axis, ChannelGroup, channel_groups, importance, sort_channels
from training.supernet.network import Supernet
from training.supernet.path import PathSpace, SinglePath

LIGHT = PathSpace(backbones=("resnet18", "resnet50"), max_modules=2, max_head_convs=2, channels=(8, 16))
GENOTYPES = {
    "before": small_genotype("before"),
    "middle": small_genotype("middle"),
    "after": small_genotype("after"),
    "AutoFA alone": small_genotype(enhanced=False),
}
WIDE = [p for p in LIGHT if p.channels == 16]


@pytest.fixture(autouse=True)
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    use_thin_backbones(monkeypatch)  # whose channels are in no group


def exact(genotype: AutoFAEGenotype, space: PathSpace = LIGHT) -> Supernet:
    """In float64, so that sums in another order are the same to many digits."""
    return tiny_supernet(genotype, space).double().eval()


def tiny(name: str) -> Supernet:
    genotype = genotype_of_kind("autofae", "", AutoFAEGenotype) if name == "searched" else GENOTYPES[name]
    return tiny_supernet(genotype, LIGHT)


@cache
def groups_of(name: str) -> list[ChannelGroup]:
    """They say which axes go together, and hold no weights."""
    return channel_groups(tiny(name))


@torch.no_grad()
def outputs(supernet: Supernet, paths: list[SinglePath]) -> list[Tensor]:
    images = random_pictures(1).double()
    return [torch.cat((out.logits.flatten(), out.deltas.flatten())) for out in (supernet(images, p) for p in paths)]


def group_of(groups: list[ChannelGroup], name: str, dim: int = 0) -> ChannelGroup:
    found = [group for group in groups if Axis(name, dim) in group.axes]
    assert len(found) == 1, name
    return found[0]


def joined(groups: list[ChannelGroup], *names: str) -> bool:
    return all(group_of(groups, name) == group_of(groups, names[0]) for name in names)


@pytest.mark.parametrize("name", GENOTYPES)
def test_sorting_keeps_what_full_width_computes_and_puts_the_most_important_first(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    supernet = exact(GENOTYPES[name])
    narrow = [SinglePath.parse(text) for text in ("R18-FA-Hx1-8", "R50-FAE-FA-Hx2-8")]
    wide = WIDE if name == "middle" else WIDE[::3]
    before, slices = outputs(supernet, wide), outputs(supernet, narrow)
    groups, state = groups_of(name), supernet.state_dict()
    total = [importance(group, state) for group in groups]
    monkeypatch.setattr("training.supernet.importance.channel_groups", lambda _: groups)  # which takes seconds
    sort_channels(supernet)
    after = outputs(supernet, wide)
    for first, second in zip(before, after, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-9, atol=1e-9)
    for first, second in zip(slices, outputs(supernet, narrow), strict=True):
        assert (first - second).abs().max() > 1e-3
    for group, old in zip(groups, total, strict=True):
        new = importance(group, state)
        torch.testing.assert_close(new, old.sort(descending=True).values)
        assert new[:8].min() >= new[8:].max() - 1e-9
        assert not torch.equal(new, old)


@pytest.mark.parametrize("name", [*GENOTYPES, "searched"])
def test_every_channel_of_neck_and_head_is_in_one_group(name: str) -> None:
    supernet, groups = tiny(name), groups_of(name)
    axes = [axis for group in groups for axis in group.axes]
    assert len(axes) == len(set(axes))
    wanted = {
        Axis(name, dim)
        for name, tensor in supernet.state_dict().items()
        if not name.startswith("backbones") and not name.endswith("beta")
        for dim in range(min(tensor.ndim, 2))
        if not (name.startswith("laterals") and dim == 1)  # the backbone's channels
        and not (name.startswith(("head.cls_logits", "head.box_deltas")) and dim == 0)  # predictions
    }
    assert set(axes) == wanted
    state = supernet.state_dict()
    assert all(state[name].shape[dim] == 16 for name, dim in axes)
    for group in groups:
        assert set(group.consumers) == {axis for axis in group.axes if axis.dim == 1}
        assert group.consumers


@pytest.mark.parametrize("name", GENOTYPES)
def test_groups_are_as_large_as_they_must_be_and_no_larger(name: str) -> None:
    """Each group alone can be shuffled; and no axis of it can stay behind."""
    supernet = exact(GENOTYPES[name])
    paths = [SinglePath.parse(text) for text in ("R18-FAE-FA-Hx2-16", "R50-FA-FAE-Hx1-16")]
    before = outputs(supernet, paths)
    kept = {key: value.clone() for key, value in supernet.state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    for group in groups_of(name):
        order = torch.randperm(16, generator=generator)
        for axis in group.axes:
            shuffle(supernet, axis, order)
        for first, second in zip(before, outputs(supernet, paths), strict=True):
            torch.testing.assert_close(second, first, rtol=1e-9, atol=1e-9)
        shuffle(supernet, group.consumers[0], order)
        changed = [(a - b).abs().max() > 1e-6 for a, b in zip(before, outputs(supernet, paths), strict=True)]
        assert any(changed), group.consumers[0]
        supernet.load_state_dict(kept)


@torch.no_grad()
def shuffle(supernet: Supernet, axis: Axis, order: Tensor) -> None:
    tensor = supernet.state_dict()[axis.tensor]
    tensor.copy_(tensor.index_select(axis.dim, order))


def test_groups_by_hand() -> None:
    """Worked out on paper from the genotype in `supernets.py`."""
    down, up, fe = "stacked.{}.top_down.cells.P{}", "stacked.{}.bottom_up.cells.P{}", "stacked.{}.enhancement.P{}"
    laterals = [f"laterals.{b}.2.0.weight" for b in LIGHT.backbones]
    heads = [up.format(k, level) + ".post.0.weight" for k in (0, 1) for level in (2, 4, 7)]
    for position in ("before", "middle", "after"):
        groups = groups_of(position)
        # A level's laterals, of all backbones, meet its f_pre in the first module; other levels' are apart.
        assert joined(groups, *laterals, down.format(0, 4) + ".pre.0.weight")
        assert not joined(groups, laterals[0], "laterals.resnet18.3.0.weight")
        assert not joined(groups, laterals[0], heads[0])
        # Each module's output feeds the head, at every level, and the next module.
        assert joined(groups, *heads, down.format(1, 4) + ".pre.0.weight")
        assert Axis("head.cls_tower.convs.0.weight", 1) in group_of(groups, heads[0]).axes
        # P6 and P7 are summed for P5, and P3 and P4 for P2; P5 is taken alone, and meets nothing of these.
        post = {level: down.format(0, level) + ".post.0.weight" for level in range(2, 8)}
        assert joined(groups, post[7], post[6])
        assert joined(groups, post[4], post[3])
        assert not joined(groups, post[7], post[4])
        assert not joined(groups, post[7], post[5])
        assert not joined(groups, post[5], post[4])
        # A tower's depths meet at the predictors; the towers do not meet.
        assert joined(groups, "head.cls_tower.convs.0.weight", "head.cls_tower.convs.1.weight")
        assert not joined(groups, "head.cls_tower.convs.0.weight", "head.box_tower.convs.0.weight")
        # Leaves are summed, and stand for what they enhance, since AutoFE may be skipped; node 1 feeds node 2 alone.
        leaves = [fe.format(0, 4) + f".nodes.{k}.0.weight" for k in (1, 2)]
        enhanced = {"before": laterals[0], "middle": post[4], "after": heads[0]}[position]
        assert joined(groups, *leaves, enhanced)
        inner = group_of(groups, fe.format(0, 4) + ".nodes.0.0.weight")
        assert inner.consumers == (Axis(leaves[0], 1),)
        assert len(inner.axes) == 1 + 4 + 1


def test_importance_by_hand() -> None:
    supernet = tiny_supernet(small_genotype(), LIGHT)
    state = supernet.state_dict()
    group = group_of(groups_of("middle"), "head.cls_tower.convs.0.weight")
    assert set(group.consumers) == {Axis("head.cls_tower.convs.1.weight", 1), Axis("head.cls_logits.weight", 1)}
    state["head.cls_tower.convs.1.weight"].zero_()
    state["head.cls_tower.convs.1.weight"][3, 5, 0, 2] = -4.0
    state["head.cls_logits.weight"].zero_()
    state["head.cls_logits.weight"][0, 2] = 0.5  # nine of them
    state["head.cls_logits.weight"][0, 5, 1, 1] = -1.0
    state["head.cls_logits.weight"][0, 9, 1, 1] = 6.0
    marks = torch.arange(16.0)
    state["head.cls_tower.norms.4.0.running_mean"].copy_(marks)
    expected = torch.zeros(16, dtype=torch.float64)
    expected[2], expected[5], expected[9] = 4.5, 5.0, 6.0
    assert torch.equal(importance(group, state), expected)
    sort_channels(supernet)
    # Those without a consumer keep their order.
    assert state["head.cls_tower.norms.4.0.running_mean"].tolist() == [
        9, 5, 2, 0, 1, 3, 4, 6, 7, 8, 10, 11, 12, 13, 14, 15,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "build",
    [lambda parameters: SGD(parameters, 0.01, momentum=0.9), lambda parameters: AdamW(parameters, 0.01)],
    ids=["SGD", "AdamW"],
)
def test_training_goes_on_as_if_nothing_was_sorted(build: Callable[..., Optimizer]) -> None:
    """Momenta, moments, gradients and averages follow: sorted or not, the next steps come to the same function."""
    space = PathSpace(backbones=("resnet18",), max_modules=1, max_head_convs=1, channels=(8, 16))
    path, images = space.largest(), random_pictures(4).double()
    results = []
    for sorts in (True, False):
        supernet = tiny_supernet(small_genotype(), space).double()
        optimizer, ema = build(supernet.parameters()), Ema(supernet, 0.5)
        for step in range(4):
            optimizer.zero_grad()
            torch.autograd.backward(supernet(images, path).logits.square().mean())
            if sorts and step == 2:
                sort_channels(supernet, optimizer, [ema.state])
            optimizer.step()
            ema.update(supernet)
        averaged = deepcopy(supernet)
        averaged.load_state_dict(ema.state)
        results.append([*outputs(supernet.eval(), [path]), *outputs(averaged.eval(), [path])])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


def test_a_function_without_a_rule_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def mirrored(x: Tensor, target: Tensor) -> Tensor:
        return torch.flip(x[..., : target.shape[-2], : target.shape[-1]], (1,))

    supernet = tiny_supernet(small_genotype(), LIGHT)
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    monkeypatch.setattr(autofae, "resize_like", mirrored)
    with pytest.raises(NotImplementedError, match="channels cannot be sorted: what __getitem__ does"):
        sort_channels(supernet)
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
