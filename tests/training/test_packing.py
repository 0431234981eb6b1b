"""Packs: what comes back is what went in, to half precision, and what is damaged is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from training.__main__ import app
from training.engine import checkpoint
from training.engine.packing import PACK_NAME, pack, unpack
from training.engine.warm_start import stage, start_from
from training.models import DetectorConfig, build_detector

CONFIG = DetectorConfig(channels=8)
PART = 3_000_000


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint as a run leaves it, with norms whose variance is beyond half precision."""
    torch.manual_seed(2)
    model = build_detector(CONFIG)
    model.state_dict()["backbone.bn1.running_var"].fill_(70_000.0)
    content = {
        "config": {"recipe": "asfd", "seed": 0, "model": checkpoint.as_plain(CONFIG)},
        "model": model.state_dict(), "optimizer": {"state": {}}, "ema": model.state_dict(), "ema_updates": 5,
        "progress": {"step": 9, "images": 90, "seconds": 3.5, "best": 0.5}, "steps": 9,
        "stages": [stage("first", 10, 2.0)],
    }  # fmt: skip
    checkpoint.save(tmp_path / "best.pt", content)
    return tmp_path / "best.pt"


def test_a_pack_comes_back_as_a_detector(saved: Path, tmp_path: Path) -> None:
    made = pack(saved, tmp_path / "pack", PART)
    assert made.size < saved.stat().st_size * 0.51
    files = sorted(path.name for path in (tmp_path / "pack").iterdir())
    assert files == sorted([PACK_NAME, *(part.file for part in made.parts)])
    assert len(made.parts) == -(-made.size // PART) > 2
    assert all((tmp_path / "pack" / part.file).stat().st_size <= PART for part in made.parts)
    back = tmp_path / "fetched" / "best.pt"
    assert unpack(tmp_path / "pack", back) == made
    (before, whole), (after, small) = checkpoint.load_detector(saved), checkpoint.load_detector(back)
    assert "optimizer" not in small
    assert "model" not in small
    assert {key: small[key] for key in ("config", "progress", "steps", "stages")} == {
        key: whole[key] for key in ("config", "progress", "steps", "stages")
    }
    for key, value in before.state_dict().items():
        got = after.state_dict()[key]
        assert got.dtype == value.dtype
        assert torch.equal(got, value.half().float() if value.is_floating_point() and value.ndim > 1 else value)
    fresh = build_detector(CONFIG)
    assert [s["images"] for s in start_from(back, fresh, CONFIG, [])] == [10, 90]
    unpack(tmp_path / "pack", back)  # the same again is no conflict


def test_a_newer_pack_takes_the_place_of_the_older(saved: Path, tmp_path: Path) -> None:
    older = pack(saved, tmp_path / "pack", PART)
    content = checkpoint.load(saved)
    content["progress"]["step"] = 10
    checkpoint.save(saved, content)
    newer = pack(saved, tmp_path / "pack", 2 * PART)
    assert {p.file for p in older.parts}.isdisjoint(p.file for p in newer.parts)
    assert {path.name for path in (tmp_path / "pack").iterdir()} == {PACK_NAME, *(p.file for p in newer.parts)}
    unpack(tmp_path / "pack", tmp_path / "new.pt")
    assert checkpoint.load(tmp_path / "new.pt")["progress"]["step"] == 10


def test_damage_is_named(saved: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "pack", tmp_path / "out.pt"
    made = pack(saved, folder, PART)
    second = folder / made.parts[1].file
    good = second.read_bytes()
    flipped = bytearray(good)
    flipped[1000] ^= 1
    for bad, words in ((bytes(flipped), "is damaged"), (good[:-1], f"{len(good) - 1} bytes instead of {len(good)}")):
        second.write_bytes(bad)
        with pytest.raises(ValueError, match=f"{second.name}.* {words}|{second.name} has {words}"):
            unpack(folder, out)
    second.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{second.name} is missing"):
        unpack(folder, out)
    second.write_bytes(good)
    listed = json.loads((folder / PACK_NAME).read_text())
    (folder / PACK_NAME).write_text(json.dumps({**listed, "parts": listed["parts"][:-1]}))
    with pytest.raises(ValueError, match="does not fit its own parts"):
        unpack(folder, out)
    outside = [{**listed["parts"][0], "file": "../best.pt"}]
    (folder / PACK_NAME).write_text(json.dumps({**listed, "parts": outside}))
    with pytest.raises(ValueError, match="outside its folder"):
        unpack(folder, out)
    (folder / PACK_NAME).write_text("{}")
    with pytest.raises(ValueError, match=r"pack\.json of this command"):
        unpack(folder, out)
    (folder / PACK_NAME).unlink()
    with pytest.raises(FileNotFoundError, match="holds no pack"):
        unpack(folder, out)
    assert not out.exists()


def test_weights_beyond_half_precision_are_refused(saved: Path, tmp_path: Path) -> None:
    content = checkpoint.load(saved)
    content["ema"]["backbone.conv1.weight"][0, 0, 0, 0] = 1e6
    checkpoint.save(saved, content)
    with pytest.raises(ValueError, match=r"backbone\.conv1\.weight"):
        pack(saved, tmp_path / "pack", PART)
    assert not (tmp_path / "pack").exists()


def test_the_commands_say_what_is_wrong(saved: Path, tmp_path: Path) -> None:
    def run(*args: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, [str(arg) for arg in args])
        return done.exit_code, " ".join(done.output.split())

    folder = tmp_path / "pack"
    code, text = run("pack", saved, "--out", folder, "--part-mib", 4)
    assert code == 0
    assert "parts" in text
    assert run("unpack", folder, "--out", tmp_path / "back.pt")[0] == 0
    for args, words in (
        (("unpack", folder, "--out", saved), "is another file"),
        (("unpack", folder, "--out", tmp_path / "last.pt"), "name it best.pt"),
        (("unpack", tmp_path / "nowhere", "--out", tmp_path / "x.pt"), "holds no pack"),
        (("pack", tmp_path / "absent.pt", "--out", folder), "absent.pt"),
        (("pack", saved, "--out", folder, "--part-mib", 0), "at least one byte"),
    ):
        code, text = run(*args)
        assert code == 2
        assert words in text
