"""Settings of the service, from `ASFD_*` environment variables. `HOST` and `PORT` are read too.

ASFD_TIERS='{"fast": 100, "slow": 2000}' ASFD_DEFAULT_TIER=fast PORT=9000 python -m service serve
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as _SourceError

from service.scheduling.policies import POLICIES

PREFIX = "ASFD_"
CUSTOM_TIER = "custom"
"""Metric label of requests that name a budget of their own instead of a tier; no tier may be called so."""

_TIER_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_MAX_TIERS = 16
_MAX_BUDGET_MS = 600_000.0

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
EngineChoice = Literal["auto", "tensorrt", "cuda", "cpu"]


class InvalidSettingsError(ValueError):
    """A setting cannot be used; the message names the variable, its value and what it takes."""


def _default_tiers() -> dict[str, float]:
    return {"realtime": 150.0, "interactive": 400.0, "standard": 1000.0, "accurate": 3000.0}


def _default_cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "asfd"
    try:
        return Path.home() / ".cache" / "asfd"
    except RuntimeError:  # a user id without a home, usual in containers
        return _temporary_cache_dir()


def _temporary_cache_dir() -> Path:
    return Path(tempfile.gettempdir()) / f"asfd-cache-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


class Settings(BaseSettings):
    """All that can be configured. Budgets in milliseconds, sizes in bytes and pixels, times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", frozen=True, populate_by_name=True, validate_default=True
    )

    repository: Path = Field(default=Path("models"), description="folder of the model repository")
    cache_dir: Path = Field(default_factory=_default_cache_dir, description="where latency profiles are kept")
    tiers: dict[str, float] = Field(default_factory=_default_tiers, description="tier name -> budget in milliseconds")
    default_tier: str = Field(default="standard", description="tier of requests that name neither tier nor budget")

    default_min_score: float = Field(
        default=0.4, ge=0, lt=1, description="score below which faces are dropped where a request does not say"
    )

    max_upload_bytes: int = Field(default=20 * 1024 * 1024, ge=1024, le=1024**3)
    max_batch_pictures: int = Field(default=16, ge=1, le=1024, description="pictures in one request to /detect/batch")
    max_batch_upload_bytes: int = Field(default=64 * 1024 * 1024, ge=1024, le=4 * 1024**3)
    max_inflight_bytes: int = Field(
        default=192 * 1024 * 1024, ge=1024 * 1024, le=64 * 1024**3,
        description="request bodies held at once; beyond it the largest are refused",
    )  # fmt: skip
    max_pixels: int = Field(default=64_000_000, ge=1024, le=1_000_000_000, description="width x height of a picture")
    body_timeout_seconds: float = Field(default=30.0, gt=0, le=3600, description="time for a request body to arrive")

    engine: EngineChoice = Field(
        default="auto", description="what runs the detectors; auto takes the fastest kind that is there"
    )
    build_engines: bool = Field(default=True, description="build TensorRT plans that are missing at start, if it can")
    engine_timeout_seconds: float = Field(
        default=0.0, ge=0, le=3600,
        description="after which a run counts as hung; 0 means 30 times what is predicted, and 30 s at least",
    )  # fmt: skip
    gpu_memory_limit_bytes: int = Field(
        default=0, ge=0, description="GPU memory that each detector may take under ONNX Runtime; 0 sets no limit"
    )
    intra_op_threads: int = Field(default=0, ge=0, le=1024, description="threads of the engine; 0 means all cores")
    decode_threads: int = Field(default=2, ge=1, le=64)
    queue_limit: int = Field(default=64, ge=1, le=100_000, description="pictures that may be inside at once")
    max_batch: int = Field(default=8, ge=1, le=256, description="pictures that the engine may run together")
    policy: str = Field(default="roll_out", description="who decides what the engine runs next")
    drain_seconds: float = Field(default=10.0, ge=0, le=600, description="time for running requests after SIGTERM")

    host: str = Field(default="127.0.0.1", validation_alias=AliasChoices("ASFD_HOST", "HOST"), min_length=1)
    port: int = Field(default=8000, validation_alias=AliasChoices("ASFD_PORT", "PORT"), ge=0, le=65535)
    log_level: LogLevel = "INFO"

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("tiers", mode="before")
    @classmethod
    def _no_booleans(cls, tiers: Any) -> Any:
        for name, budget in tiers.items() if isinstance(tiers, dict) else ():
            if isinstance(budget, bool):  # pydantic takes true as 1.0
                raise ValueError(f"tier {name!r} needs a budget in milliseconds, got {str(budget).lower()}")
        return tiers

    @field_validator("tiers")
    @classmethod
    def _tiers_usable(cls, tiers: dict[str, float]) -> dict[str, float]:
        if not tiers or len(tiers) > _MAX_TIERS:
            raise ValueError(f"needs 1 to {_MAX_TIERS} tiers, got {len(tiers)}")
        for name, budget in tiers.items():
            if not _TIER_NAME.fullmatch(name) or name == CUSTOM_TIER:
                raise ValueError(
                    f"tier name {name!r} must be lower-case letters, digits, '-' or '_', and not {CUSTOM_TIER!r}"
                )
            if not (math.isfinite(budget) and 0 < budget <= _MAX_BUDGET_MS):
                raise ValueError(f"tier {name!r} needs a budget between 0 and {_MAX_BUDGET_MS:.0f} ms, got {budget}")
        return dict(sorted(tiers.items(), key=lambda item: item[1]))

    @field_validator("policy")
    @classmethod
    def _policy_exists(cls, name: str) -> str:
        if name not in POLICIES:
            raise ValueError(f"there is no policy {name!r}; there are {', '.join(POLICIES)}")
        return name

    @model_validator(mode="after")
    def _one_upload_fits(self) -> Self:
        for name in ("max_upload_bytes", "max_batch_upload_bytes"):
            if getattr(self, name) > self.max_inflight_bytes:  # it would be told to try again, for ever
                raise ValueError(
                    f"{PREFIX}{name.upper()} is above ASFD_MAX_INFLIGHT_BYTES ({self.max_inflight_bytes}), so that "
                    "such a request could never be held; raise the latter"
                )
        return self

    @model_validator(mode="after")
    def _default_tier_exists(self) -> Self:
        if self.default_tier not in self.tiers:
            raise ValueError(
                f"ASFD_DEFAULT_TIER is {self.default_tier!r}, which is not among the tiers {', '.join(self.tiers)}; "
                "set ASFD_DEFAULT_TIER to one of them"
            )
        return self

    def usable_cache_dir(self) -> Path:
        """`cache_dir`, made if need be; where it cannot be written, a folder inside the system's temporary one."""
        for folder in (self.cache_dir, _temporary_cache_dir()):
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                with tempfile.TemporaryFile(dir=folder):
                    return folder
            except OSError:
                continue
        raise InvalidSettingsError(
            f"neither ASFD_CACHE_DIR ({self.cache_dir}) nor the temporary folder can be written; "
            "set ASFD_CACHE_DIR to a writable folder"
        )


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment; `overrides` win. Raises `InvalidSettingsError` with one sentence a problem."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise InvalidSettingsError("; ".join(_sentence(dict(item)) for item in error.errors())) from None
    except _SourceError as error:
        # pydantic-settings says only that a field could not be parsed: tiers are the one setting written as JSON.
        raise InvalidSettingsError(
            f'{error}; ASFD_TIERS must be JSON such as \'{{"fast": 100, "slow": 2000}}\''
        ) from None


def unknown_variables() -> list[str]:
    """`ASFD_*` variables that are set and mean nothing: most likely misspelt. The service warns of them at start."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)


def _sentence(item: dict[str, Any]) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    if not item["loc"]:
        return message
    name = str(item["loc"][0])
    variable = name if name.isupper() else PREFIX + name.upper()
    value = item.get("input")
    if variable in ("ASFD_HOST", "ASFD_PORT"):
        variable = f"{variable} (or {variable.removeprefix(PREFIX)})"
    shown = "" if isinstance(value, dict) else f" is {value!r}"
    return f"{variable}{shown}: {message[0].lower()}{message[1:]}"
