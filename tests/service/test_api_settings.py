"""Settings: read from the environment, refused with a sentence that names the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.settings import InvalidSettingsError, load_settings, unknown_variables


def test_defaults() -> None:
    settings = load_settings()
    assert settings.default_tier in settings.tiers
    assert list(settings.tiers.values()) == sorted(settings.tiers.values())


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASFD_TIERS", '{"slow": 2000, "fast": 100}')
    monkeypatch.setenv("ASFD_DEFAULT_TIER", "fast")
    monkeypatch.setenv("ASFD_LOG_LEVEL", "debug")
    monkeypatch.setenv("PORT", "9001")
    monkeypatch.setenv("HOST", "0.0.0.0")
    settings = load_settings()
    assert settings.tiers == {"fast": 100.0, "slow": 2000.0}
    assert (settings.host, settings.port, settings.log_level) == ("0.0.0.0", 9001, "DEBUG")
    monkeypatch.setenv("ASFD_PORT", "9002")
    assert load_settings().port == 9002
    assert load_settings(port=9003).port == 9003


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("PORT", "http", "ASFD_PORT (or PORT) is 'http'"),
        ("ASFD_PORT", "70000", "65535"),
        ("ASFD_TIERS", "fast=100", "ASFD_TIERS must be JSON"),
        ("ASFD_TIERS", "{}", "1 to 16 tiers"),
        ("ASFD_TIERS", '{"standard": 0}', "budget between 0"),
        ("ASFD_TIERS", '{"standard": NaN}', "budget between 0"),
        ("ASFD_TIERS", '{"standard": true}', "ASFD_TIERS: tier 'standard' needs a budget in milliseconds, got true"),
        ("ASFD_TIERS", '{"standard": 100, "fast": false}', "tier 'fast' needs a budget in milliseconds, got false"),
        ("ASFD_TIERS", '{"custom": 10}', "'custom'"),
        ("ASFD_TIERS", '{"Big One": 10}', "'Big One'"),
        ("ASFD_TIERS", '{"only": 10}', "ASFD_DEFAULT_TIER is 'standard'"),
        ("ASFD_DEFAULT_TIER", "fastest", "'fastest'"),
        ("ASFD_MAX_PIXELS", "-1", "ASFD_MAX_PIXELS is '-1'"),
        ("ASFD_MAX_UPLOAD_BYTES", "20MB", "ASFD_MAX_UPLOAD_BYTES is '20MB'"),
        ("ASFD_MAX_BATCH_UPLOAD_BYTES", "300000000", "ASFD_MAX_BATCH_UPLOAD_BYTES is above ASFD_MAX_INFLIGHT_BYTES"),
        ("ASFD_DECODE_THREADS", "0", "ASFD_DECODE_THREADS"),
        ("ASFD_LOG_LEVEL", "loud", "ASFD_LOG_LEVEL"),
    ],
)
def test_what_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSettingsError) as caught:
        load_settings()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_misspelt_variables_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unknown_variables() == []
    monkeypatch.setenv("ASFD_TEIRS", "{}")
    monkeypatch.setenv("ASFD_PORT", "1")
    assert unknown_variables() == ["ASFD_TEIRS"]


def test_cache_folder_falls_back_to_a_temporary_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    wanted = tmp_path / "cache" / "asfd"
    assert load_settings(cache_dir=wanted).usable_cache_dir() == wanted
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    fallback = load_settings(cache_dir=blocked / "asfd").usable_cache_dir()
    assert fallback.is_dir()
    assert fallback.parent == tmp_path
