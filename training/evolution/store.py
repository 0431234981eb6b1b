"""A search on disk: one JSON file with every search of a supernet on a machine, so that all of them resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from training.evolution.genetic import SearchState
from training.evolution.records import Known, Record
from training.files import write_bytes

Method = Literal["genetic", "random"]


class Content(BaseModel):
    """The file. settings: what all of it depends on; searches: by method and budget, such as `genetic 20.0`."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    settings: dict[str, Any]
    ap50: dict[str, float] = {}
    latency: dict[str, float] = {}
    searches: dict[str, SearchState] = {}


class Store:
    """`state.json`: read at the start, written after every generation, whole or not at all."""

    def __init__(self, content: Content, file: Path | None = None) -> None:
        """file: None keeps nothing, as the processes beside the first one do."""
        self.content, self.file = content, file
        self.known = Known(content.ap50, content.latency)

    @classmethod
    def open(cls, file: Path, settings: dict[str, Any]) -> Store:
        """Go on from the file, or begin. Raises ValueError where it is none of ours, or was made with other
        settings."""
        if not file.is_file():
            return cls(Content(settings=settings), file)
        try:
            content = Content.model_validate_json(file.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise ValueError(f"{file} is no state of a search: {where}: {first['msg']}") from None
        differs = [
            name for name in {**content.settings, **settings} if content.settings.get(name) != settings.get(name)
        ]  # fmt: skip
        if differs:
            raise ValueError(
                f"{file.parent} holds a search with other settings ({', '.join(differs)}); name another --out, or "
                "remove that folder"
            )
        return cls(content, file)

    def state(self, method: Method, budget_ms: float) -> SearchState:
        """Where that search stands, a new one where it has not begun."""
        return self.content.searches.setdefault(f"{method} {float(budget_ms)}", SearchState())

    def save(self) -> None:
        """Write the file, if there is one."""
        if self.file is not None:
            write_bytes(self.file, self.content.model_dump_json().encode())

    def history(self, method: Method | None = None) -> list[Record]:
        """Every candidate of all searches, or of one method's, smallest budget first."""
        found: list[tuple[float, str, SearchState]] = []
        for name, state in self.content.searches.items():
            kind, _, budget = name.partition(" ")
            if method in (None, kind):
                found.append((float(budget), kind, state))
        return [record for *_, state in sorted(found, key=lambda one: one[:2]) for record in state.records]
