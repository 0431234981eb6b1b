"""Batch norms measured anew, against means and variances computed apart."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from tests.training.supernets import random_pictures, tiny_supernet
from training.models.detector import Detector
from training.supernet.calibration import recalibrate
from training.supernet.path import PathSpace, SinglePath

SPACE = PathSpace(backbones=("resnet18",), max_modules=1, max_head_convs=2, channels=(8, 12))


@pytest.fixture
def detector() -> Detector:
    return tiny_supernet(space=SPACE).cut(SinglePath.parse("R18-FAE-Hx2-8"))


def test_statistics_are_means_over_batches_and_weights_stay(detector: Detector) -> None:
    met: dict[str, list[npt.NDArray[np.float64]]] = defaultdict(list)

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        met[name].append(inputs[0].double().numpy())

    norms = {name: module for name, module in detector.named_modules() if isinstance(module, nn.BatchNorm2d)}
    hooks = [module.register_forward_pre_hook(partial(note, name)) for name, module in norms.items()]
    weights = {name: parameter.detach().clone() for name, parameter in detector.named_parameters()}
    batches = [random_pictures(2, 64, 1), 3 * random_pictures(4, 64, 2) + 1, random_pictures(3, 96, 3)]
    recalibrate(detector, iter(batches))
    for hook in hooks:
        hook.remove()
    assert len(norms) == 20 + 4 + 6 + 22 + 18 + 24  # ResNet-18 with two more levels, laterals, AutoFA, AutoFE, head
    for name, norm in norms.items():
        maps = met[name]
        assert len(maps) == 3
        mean = np.mean([x.mean(axis=(0, 2, 3)) for x in maps], axis=0)
        variance = np.mean([x.var(axis=(0, 2, 3), ddof=1) for x in maps], axis=0)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-4, atol=1e-4 * np.abs(mean).max())
        np.testing.assert_allclose(norm.running_var.numpy(), variance, rtol=1e-4)
        assert norm.momentum == 0.1
    assert not any(module.training for module in detector.modules())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in detector.named_parameters())


def test_what_was_measured_before_does_not_count(detector: Detector) -> None:
    recalibrate(detector, [random_pictures(seed=1)])
    first = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    recalibrate(detector, [5 * random_pictures(seed=2)])
    assert not torch.equal(detector.state_dict()["backbone.bn1.running_var"], first["backbone.bn1.running_var"])
    recalibrate(detector, [random_pictures(seed=1)])
    assert all(torch.equal(tensor, first[name]) for name, tensor in detector.state_dict().items())


def test_no_picture_is_an_error_and_changes_nothing(detector: Detector) -> None:
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with pytest.raises(ValueError, match="measured on pictures, but none was given"):
        recalibrate(detector, [])
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    assert not detector.training
