"""A member on its way: a hidden folder beside the finished ones, with a record of what is done, so that a run that was
cut off goes on. The record stays with the finished member and tells the next run that there is nothing to do."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from export.index import UNSHIPPED
from export.member import write_atomically
from service.repository.manifest import MANIFEST_NAME
from service.repository.store import RepositoryError, load_manifest, verify_file

STAGING = ".staging"
RECORD = ".export.json"


class Score(BaseModel):
    """One pass over the photos. AP in 0..1; ms: median milliseconds a photo, resizing included."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ap50: float
    ap: float
    protocol: str
    ms: float


class Record(BaseModel):
    """What was done. task: digest of what the steps' results depend on; scores: by variant and long side, those of
    variants that were not shipped included; notes: sentences about what was decided."""

    model_config = ConfigDict(extra="forbid")

    task: str
    done: list[str] = []
    scores: dict[str, dict[int, Score]] = {}
    notes: list[str] = []


class Stage:
    """The folder of one member in `<repository>/.staging`, and its record."""

    def __init__(self, repository: Path, member: str, task: str) -> None:
        """Take up what a run of the same task has left, or a copy of what it has published, or begin with nothing."""
        self.repository, self.member = repository, member
        self.folder = repository / STAGING / member
        left = read_record(self.folder)
        if left is None or left.task != task:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            published = _whole(repository, member, task)
            if published is None:
                self.folder.mkdir()
                left = Record(task=task)
            else:
                copied, left = repository / STAGING / f".{member}.copy", published[1]
                shutil.rmtree(copied, ignore_errors=True)
                shutil.copytree(published[0], copied)
                copied.rename(self.folder)
        for partial in self.folder.glob(".*"):  # of writes that were cut off; nobody else writes here
            if partial.suffix[1:].isdecimal():
                partial.unlink()
        self.record = left
        self.save()

    def save(self) -> None:
        write_atomically(self.folder / RECORD, self.record.model_dump_json(indent=1).encode())

    def mark(self, step: str) -> None:
        """Note that a step is done."""
        self.record.done = [*(name for name in self.record.done if name != step), step]
        self.save()

    def publish(self) -> Path:
        """Put the folder in its place by renaming it, and remove what was there before, unshipped or not.

        A run that is cut off in between leaves the finished stage, which the next run publishes.
        """
        target = self.repository / self.member
        old = self.repository / STAGING / f".{self.member}.old"
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        self.folder.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self.repository / UNSHIPPED / self.member, ignore_errors=True)
        remove_empty(self.repository / STAGING)
        return target


def read_record(folder: Path) -> Record | None:
    """The record of a member's folder, or None where there is none, or half of one."""
    try:
        return Record.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def finished(repository: Path, member: str, task: str, steps: tuple[str, ...]) -> Path | None:
    """The folder, shipped or not, that a run of the same task has finished and whose files are whole, or None."""
    found = _whole(repository, member, task)
    return found[0] if found is not None and set(steps) <= set(found[1].done) else None


def _whole(repository: Path, member: str, task: str) -> tuple[Path, Record] | None:
    """Folder and record of what a run of the same task has published, its files whole."""
    for folder in (repository / member, repository / UNSHIPPED / member):
        record = read_record(folder)
        if record is None or record.task != task:
            continue
        try:
            manifest = load_manifest(folder / MANIFEST_NAME)
        except RepositoryError:
            continue
        if not any(verify_file(folder / file.path, file) for file in manifest.files):
            return folder, record
    return None


def remove_empty(folder: Path) -> None:
    """Remove a folder that holds nothing."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
