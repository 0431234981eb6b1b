"""How much disk the service's dependencies take, by the files that the installed packages list."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def service_requirements() -> list[str]:
    """What the service needs, as `pyproject.toml` states it: the project's dependencies without its extras."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [str(line) for line in project["dependencies"]]


def installed_sizes(requirements: Sequence[str]) -> dict[str, int]:
    """Bytes on disk of the packages required and of all that they need in turn, by name, largest first.

    Raises ValueError where one of them is not installed.
    """
    sizes: dict[str, int] = {}
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = canonicalize_name(requirement.name)
        if name in sizes:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise ValueError(f"{name} is needed by the service and not installed; run `make setup`") from None
        sizes[name] = sum(_bytes(file) for file in distribution.files or [])
        waiting += [Requirement(line) for line in distribution.requires or []]
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _bytes(file: metadata.PackagePath) -> int:
    if file.size is not None:
        return file.size
    try:
        return Path(str(file.locate())).stat().st_size
    except OSError:
        return 0
