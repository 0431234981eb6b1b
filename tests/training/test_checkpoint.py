"""What a checkpoint says of its run is compared with what is asked for before it is gone on with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from training.engine.checkpoint import as_plain, check_origin, fingerprint, same_settings
from training.recipes import paper


def test_settings_that_an_earlier_version_lacks_are_not_compared() -> None:
    stored, asked = as_plain(paper()), as_plain(replace(paper(), seed=1))
    assert same_settings(stored, as_plain(paper()))
    assert not same_settings(stored, asked)
    del stored["optim"]["lr_images"]
    assert same_settings(stored, as_plain(paper()))
    assert not same_settings(stored, asked)


def test_a_setting_that_is_gone_is_a_difference() -> None:
    assert not same_settings({**as_plain(paper()), "former": 1}, as_plain(paper()))


def test_origins_are_compared_by_name(tmp_path: Path) -> None:
    check_origin({"photos": 6}, {"photos": 6, "start": "abc"}, tmp_path, "a search")
    with pytest.raises(ValueError, match=r"photos: 7, not 6"):
        check_origin({"photos": 7}, {"photos": 6}, tmp_path, "a search")


def test_a_folders_fingerprint_is_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("1")
    first = fingerprint(tmp_path)
    (tmp_path / "notes.txt").write_text("no weights")
    assert fingerprint(tmp_path) == first
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    assert fingerprint(tmp_path) != first
