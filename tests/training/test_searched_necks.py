"""The discrete necks that come out of the spaces which the paper compares with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from export.build import architecture_of
from export.onnx_graph import OPSET
from tests.training.searching import (
    OTHERS,
    WIDTHS,
    full_genotype,
    pyramid,
    stir,
)
from training.models.detector import DetectorConfig
from training.models.genotype import CellEdge, default_genotype, parse
from training.models.necks import NECKS, NeckOptions, build_neck
from training.models.necks.searched import DartsCell, FullyConnectedFusion


@pytest.mark.parametrize("name", OTHERS)
def test_a_neck_refuses_a_genotype_of_another(name: str) -> None:
    other = OTHERS[(OTHERS.index(name) + 1) % len(OTHERS)]
    with pytest.raises(ValueError, match=rf"^{name} takes a genotype .* not one of "):
        build_neck(name, (1,) * 6, 2, NeckOptions(genotype=full_genotype(other)))
    with pytest.raises(ValueError, match=r"has the levels .* but there are 2 maps"):
        build_neck(name, (1, 1), 2, NeckOptions(genotype=full_genotype(name)))
    with pytest.raises(ValueError, match=r"has the levels .*, not 8"):
        build_neck(name, (1, 1), 2, NeckOptions(genotype=full_genotype(name), levels=(7, 8)))


@pytest.mark.parametrize("name", OTHERS)
def test_a_neck_takes_some_levels_of_its_genotype(name: str) -> None:
    neck = build_neck(name, WIDTHS, 4, NeckOptions(genotype=full_genotype(name), levels=(3, 4, 5))).eval()
    maps = pyramid(50, 39)
    with torch.no_grad():
        assert [x.shape for x in neck(maps)] == [(1, 4, *x.shape[2:]) for x in maps]
    if isinstance(neck, FullyConnectedFusion):
        assert all(source in (0, 1, 2) for sources in neck.sources for source in sources)  # places, not levels


class _Flat(nn.Module):
    """Takes the maps one by one, as an exported graph does."""

    def __init__(self, neck: nn.Module) -> None:
        super().__init__()
        self.neck = neck

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.neck(list(maps)))


@pytest.mark.parametrize("name", OTHERS)
def test_an_exported_neck_gives_the_same_at_another_size(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    widths = (3, 4, 5, 6, 4, 3)
    made = build_neck(name, widths, 5, NeckOptions(genotype=full_genotype(name)))
    stir(made)
    neck = _Flat(made).eval()
    inputs = [f"c{i}" for i in range(6)]
    file = tmp_path / "neck.onnx"
    with torch.no_grad():
        torch.onnx.export(
            neck, tuple(pyramid(192, 160, widths=widths)), file, input_names=inputs,
            output_names=[f"p{i}" for i in range(6)],
            dynamic_axes={i: {2: f"{i}_height", 3: f"{i}_width"} for i in inputs}, opset_version=OPSET, dynamo=False,
        )  # fmt: skip
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    for size in ((97, 65), (333, 201)):
        maps = pyramid(*size, widths=widths)
        with torch.no_grad():
            expected = neck(*maps)
        got = session.run(None, {name: x.numpy() for name, x in zip(inputs, maps, strict=True)})
        for mine, theirs in zip(expected, got, strict=True):
            torch.testing.assert_close(mine, torch.from_numpy(theirs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["darts-fa", "pc-darts-fe"])
def test_a_manifest_holds_the_genotype_that_a_neck_was_built_from(name: str) -> None:
    config = DetectorConfig(neck=name, channels=8)
    own = architecture_of(config)
    assert own.genotype == default_genotype(name).model_dump(mode="json")
    assert own.single_path == ""
    given = full_genotype(name)
    other = replace(config, neck_options=NeckOptions(genotype=given))
    assert architecture_of(other).genotype == parse(given).model_dump(mode="json") != own.genotype
    assert architecture_of(DetectorConfig(channels=8)).genotype is None


@pytest.mark.parametrize("name", [info.name for info in NECKS.values() if info.searched])
def test_every_parameter_that_is_trained_has_a_gradient(name: str) -> None:
    # Several processes wait for each of them, and stop where one has none.
    widths = (3, 4, 5, 6, 4, 3)
    neck = build_neck(name, widths, 4).train()
    torch.autograd.backward(torch.stack([x.sum() for x in neck(pyramid(130, 97, 2, widths))]).sum())
    assert [key for key, p in neck.named_parameters() if p.requires_grad and p.grad is None] == []


def test_an_input_of_a_cell_that_no_edge_takes_is_not_trained() -> None:
    cell = DartsCell(4, ((CellEdge(input=1, operation="skip_connect", strength=1.0),),))
    assert [all(p.requires_grad for p in part.parameters()) for part in cell.preprocess] == [False, True]
