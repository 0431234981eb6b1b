"""The hand-crafted necks: shapes, gradients, parameters, export, options, and the command that lists them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from export.__main__ import app as export_app
from export.onnx_graph import OPSET
from service.repository.store import load_manifest
from training.__main__ import app
from training.config import TrainConfig
from training.engine import checkpoint
from training.family import member_config
from training.models import DetectorConfig, build_detector
from training.models.necks import NECKS, NeckOptions, build_neck
from training.models.necks.enhancement import ENHANCEMENTS

WIDTHS = (6, 8, 12, 16, 8, 6)
OPTIONS = NeckOptions(pair=(3, 5))
SIX_LEVELS = ("fem-fpn", "nas-fpn", "nas-fcos")
HAND_CRAFTED = ("none", "fpn", "pafpn", "bifpn", "abifpn", *SIX_LEVELS, "pair", *ENHANCEMENTS)


def pyramid(height: int, width: int, batch: int = 1, widths: Sequence[int] = WIDTHS) -> list[Tensor]:
    """Random maps as the backbone would make them of such a picture, finest first."""
    generator = torch.Generator().manual_seed(height * width)
    sizes = [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32, 64, 128)]
    return [torch.randn(batch, c, *size, generator=generator) for c, size in zip(widths, sizes, strict=False)]


@pytest.mark.parametrize("width", [1, 10, 24, 48])
@pytest.mark.parametrize("name", HAND_CRAFTED)
def test_a_neck_keeps_every_size_at_any_width(name: str, width: int) -> None:
    neck = build_neck(name, WIDTHS, width, OPTIONS).eval()
    for size in ((97, 65), (130, 67), (33, 300)):
        maps = pyramid(*size)
        with torch.no_grad():
            out = neck([x.clone() for x in maps])
        assert [x.shape for x in out] == [(1, width, *x.shape[2:]) for x in maps]
        assert all(bool(x.isfinite().all()) for x in out)


@pytest.mark.parametrize("name", NECKS)
def test_a_neck_keeps_sizes_that_were_halved_downwards(name: str) -> None:
    sizes = [(33, 47)]
    while len(sizes) < 6:
        sizes.append((max(1, sizes[-1][0] // 2), max(1, sizes[-1][1] // 2)))
    maps = [torch.randn(1, c, *size) for c, size in zip(WIDTHS, sizes, strict=True)]
    neck = build_neck(name, WIDTHS, 8, OPTIONS if name == "pair" else None).eval()
    with torch.no_grad():
        out = neck(maps)
    assert [x.shape for x in out] == [(1, 8, *size) for size in sizes]
    assert all(bool(x.isfinite().all()) for x in out)


@pytest.mark.parametrize("name", sorted(set(HAND_CRAFTED) - set(SIX_LEVELS)))
@pytest.mark.parametrize("levels", [2, 3])
def test_a_neck_takes_fewer_levels(name: str, levels: int) -> None:
    neck = build_neck(name, WIDTHS[:levels], 4, NeckOptions(pair=(2, 3))).eval()
    maps = pyramid(50, 39, widths=WIDTHS[:levels])
    with torch.no_grad():
        assert [x.shape for x in neck(maps)] == [(1, 4, *x.shape[2:]) for x in maps]


@pytest.mark.parametrize("name", SIX_LEVELS)
def test_a_neck_laid_out_for_six_levels_says_so(name: str) -> None:
    with pytest.raises(ValueError, match=r"six levels P2..P7, not 5"):
        build_neck(name, WIDTHS[:5], 4)


@pytest.mark.parametrize("name", HAND_CRAFTED)
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    neck = build_neck(name, WIDTHS, 24, OPTIONS).train()
    out = neck(pyramid(260, 130, batch=2))
    torch.autograd.backward(torch.stack([(x * torch.randn_like(x)).sum() for x in out]).sum())
    for parameter, tensor in neck.named_parameters():
        assert tensor.grad is not None, parameter
        assert bool(tensor.grad.isfinite().all()), parameter
        assert float(tensor.grad.abs().max()) > 0, parameter


C, UNIT = 24, 3  # the width of the next test, and RFB's eighth of it


def norm(inputs: int, outputs: int, area: int) -> int:
    """Numbers of a convolution without bias over `area` pixels, and its batch norm."""
    return inputs * outputs * area + 2 * outputs


def bias(inputs: int, outputs: int, area: int) -> int:
    return inputs * outputs * area + outputs


LATERALS = sum(norm(c, C, 1) for c in WIDTHS)
NODES = 5 + 5
FUSION_WEIGHTS = 5 * 2 + 4 * 3 + 2
H, Q, B = C // 2, C // 4, 4
PARAMETERS = {
    "none": 0,
    "fpn": 6 * norm(C, C, 9),
    "pafpn": 6 * norm(C, C, 9) + 5 * 2 * norm(C, C, 9),
    "bifpn": NODES * (9 * C + norm(C, C, 1)) + FUSION_WEIGHTS,
    "abifpn": NODES * ((9 + 3 + 3) * C + 3 * 2 * C + norm(C, C, 1)) + FUSION_WEIGHTS,
    "fem-fpn": 3 * norm(C, C, 1),
    "nas-fpn": 7 * 7 * norm(C, C, 9) + norm(C, C, 9),
    # Five cells convolve both inputs and two one; norm of 2C and a 1x1 of two inputs an output; P6 and P7; P2.
    "nas-fcos": (5 * 2 + 2) * norm(C, C, 9) + 7 * (4 * C + 2 * C) + 2 * bias(C, C, 9) + norm(C, C, 9),
    "pair": norm(C, C, 9),
    "aspp": 6 * (2 * bias(C, Q, 1) + 2 * bias(C, Q, 9)),
    "rfb": 6
    * (
        norm(C, 2 * UNIT, 1) + norm(2 * UNIT, 2 * UNIT, 9)
        + norm(C, UNIT, 1) + norm(UNIT, 2 * UNIT, 9) + norm(2 * UNIT, 2 * UNIT, 9)
        + norm(C, UNIT, 1) + norm(UNIT, B, 9) + norm(B, 2 * UNIT, 9) + norm(2 * UNIT, 2 * UNIT, 9)
        + norm(6 * UNIT, C, 1) + norm(C, C, 1)
    ),
    "cpm": 6 * (bias(C, H, 9) + bias(C, Q, 9) + 3 * bias(Q, Q, 9)),
    "fem-cpm": 6 * (2 * bias(C, H, 9) + 2 * bias(H, Q, 9) + bias(Q, Q, 9)),
    "rfe": 6 * (4 * bias(C, Q, 1) + 2 * bias(Q, Q, 5) + 2 * bias(Q, Q, 3) + 4 * bias(Q, Q, 1) + bias(C, C, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", HAND_CRAFTED)
def test_a_neck_has_as_many_parameters_as_its_description_says(name: str) -> None:
    neck = build_neck(name, WIDTHS, C, OPTIONS)
    assert sum(p.numel() for p in neck.parameters()) == LATERALS + PARAMETERS[name]


class _Flat(nn.Module):
    """Takes the maps one by one, as an exported graph does."""

    def __init__(self, neck: nn.Module) -> None:
        super().__init__()
        self.neck = neck

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.neck(list(maps)))


@pytest.mark.parametrize("name", HAND_CRAFTED)
def test_an_exported_neck_gives_the_same_at_another_size(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    neck = _Flat(build_neck(name, WIDTHS, 10, OPTIONS)).eval()
    inputs = [f"c{i}" for i in range(6)]
    file = tmp_path / "neck.onnx"
    with torch.no_grad():
        torch.onnx.export(
            neck, tuple(pyramid(192, 160)), file, input_names=inputs, output_names=[f"p{i}" for i in range(6)],
            dynamic_axes={i: {2: f"{i}_height", 3: f"{i}_width"} for i in inputs}, opset_version=OPSET, dynamo=False,
        )  # fmt: skip
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    for size in ((97, 65), (333, 201)):
        maps = pyramid(*size)
        with torch.no_grad():
            expected = neck(*maps)
        got = session.run(None, {name: x.numpy() for name, x in zip(inputs, maps, strict=True)})
        for mine, theirs in zip(expected, got, strict=True):
            torch.testing.assert_close(mine, torch.from_numpy(theirs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "pools"), [("pafpn", 0), ("bifpn", 5), ("nas-fcos", 0)])
def test_a_graph_holds_no_resizing_that_our_pyramid_does_not_need(name: str, pools: int, tmp_path: Path) -> None:
    neck, file = _Flat(build_neck(name, WIDTHS, 4)).eval(), tmp_path / "neck.onnx"
    with torch.no_grad():
        torch.onnx.export(neck, tuple(pyramid(97, 65)), file, opset_version=OPSET, dynamo=False)
    nodes = [node.op_type for node in onnx.load(file).graph.node]
    assert nodes.count("MaxPool") == pools
    if name != "nas-fcos":
        assert nodes.count("Resize") == 5


def test_a_member_with_any_neck_is_trained_and_exported_under_its_name(tmp_path: Path) -> None:
    config = TrainConfig(recipe="test", model=member_config("R18-FA-Hx1-4", "bifpn"))
    weights = build_detector(config.model).state_dict()
    content = {"config": checkpoint.as_plain(config), "ema": weights, "progress": {"images": 1, "seconds": 1.0}}
    checkpoint.save(tmp_path / "best.pt", content)
    command = ["onnx", str(tmp_path / "best.pt"), "--member", "tiny", "--repository", str(tmp_path)]
    done = CliRunner().invoke(export_app, command)
    assert done.exit_code == 0, done.output
    made = load_manifest(tmp_path / "tiny" / "manifest.json").architecture
    assert (made.neck, made.single_path, made.genotype) == ("bifpn", "", None)
    refused = CliRunner().invoke(app, ["train", "--neck", "bifpn", "--data", "none", "--out", str(tmp_path / "run")])
    assert "no split 'train'" in refused.output  # the neck is not what it stops at


@pytest.mark.parametrize("pair", [(2, 5), (4, 3), (7, 2)])
def test_a_pair_touches_exactly_its_level(pair: tuple[int, int]) -> None:
    torch.manual_seed(0)
    neck = build_neck("pair", WIDTHS, 6, NeckOptions(pair=pair)).eval()
    plain = build_neck("none", WIDTHS, 6).eval()
    plain.load_state_dict({k: v for k, v in neck.state_dict().items() if k.startswith("lateral.")})
    maps = pyramid(130, 67)
    with torch.no_grad():
        out, laterals = neck([x.clone() for x in maps]), plain([x.clone() for x in maps])
    assert [not torch.equal(a, b) for a, b in zip(out, laterals, strict=True)] == [i + 2 == pair[0] for i in range(6)]
    changed = [x.clone() for x in maps]
    changed[pair[1] - 2] += 1  # the source reaches itself and the level, nothing else
    with torch.no_grad():
        moved = neck(changed)
    assert [not torch.equal(a, b) for a, b in zip(out, moved, strict=True)] == [i + 2 in pair for i in range(6)]


@pytest.mark.parametrize(
    ("pair", "message"),
    [(None, r"needs its option"), ((1, 2), r"not among 2..7"), ((2, 8), r"not among 2..7"), ((4, 4), r"with itself")],
)
def test_a_pair_must_name_two_levels(pair: tuple[int, int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_neck("pair", WIDTHS, 4, NeckOptions(pair=pair))


@pytest.mark.parametrize("name", ENHANCEMENTS)
def test_an_enhancement_acts_on_the_named_levels_alone(name: str) -> None:
    torch.manual_seed(0)
    neck = build_neck(name, WIDTHS, 8, NeckOptions(levels=(3, 6))).eval()
    plain = build_neck("none", WIDTHS, 8).eval()
    plain.load_state_dict({k: v for k, v in neck.state_dict().items() if k.startswith("lateral.")})
    maps = pyramid(97, 65)
    with torch.no_grad():
        same = [torch.equal(a, b) for a, b in zip(neck(maps), plain(maps), strict=True)]
    assert same == [True, False, True, True, False, True]
    one = sum(p.numel() for p in ENHANCEMENTS[name](8).parameters())  # twice that: weights are not shared
    assert sum(p.numel() for p in neck.parameters()) - sum(p.numel() for p in plain.parameters()) == 2 * one


def test_an_enhancement_refuses_a_level_that_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"no pyramid level 8 to enhance; there are 2\.\.7"):
        build_neck("rfe", WIDTHS, 4, NeckOptions(levels=(2, 8)))


def test_a_detector_takes_a_neck_with_its_options() -> None:
    config = DetectorConfig(channels=8, neck="pair", neck_options=NeckOptions(pair=(2, 3)))
    with torch.no_grad():
        output = build_detector(config).eval()(torch.zeros(1, 3, 33, 65))
    assert output.logits.shape == (1, sum(-(-33 // s) * -(-65 // s) for s in (4, 8, 16, 32, 64, 128)))


@pytest.fixture(scope="module")
def necks() -> Callable[..., str]:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["necks", *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def test_the_command_prints_one_name_a_line(necks: Callable[..., str]) -> None:
    assert necks().splitlines() == list(NECKS)
    assert set(HAND_CRAFTED) <= set(NECKS)


def test_the_command_describes_every_neck(necks: Callable[..., str]) -> None:
    rows = {row["name"]: row for row in json.loads(necks("--json"))}
    assert list(rows) == list(NECKS)
    for name, row in rows.items():
        assert (row["kind"], row["source"], row["liberties"]) == (
            NECKS[name].kind, NECKS[name].source, NECKS[name].liberties,
        )  # fmt: skip
        assert row["searched"] == NECKS[name].searched
    # ResNet-18's widths to 64 channels, each with a batch norm; a multiply-accumulate a weight of the 1x1 and a pixel.
    widths, cells = (64, 128, 256, 512, 256, 128), (120 * 160, 60 * 80, 30 * 40, 15 * 20, 8 * 10, 4 * 5)
    assert rows["none"]["parameters"] == sum(widths) * 64 + 6 * 128
    macs = sum(c * 64 * n for c, n in zip(widths, cells, strict=True))
    assert rows["none"]["gmacs"] == pytest.approx(macs / 1e9, abs=1e-4)
    smooth = 64 * 64 * 9 * sum(cells)
    assert rows["fpn"]["gmacs"] == pytest.approx((macs + smooth) / 1e9, abs=1e-4)
    assert rows["pair"]["parameters"] is None
    assert rows["pair"]["gmacs"] is None
    assert "pair" in rows["pair"]["needs"]
    assert all("needs" not in rows[name] for name in HAND_CRAFTED if name != "pair")
