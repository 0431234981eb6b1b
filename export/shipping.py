"""Which members are shipped: a slower one that is not better than a faster one is not."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from export.index import UNSHIPPED, WHY
from export.member import write_atomically
from export.staging import remove_empty
from service.engines.ort import open_cpu
from service.profiling import measure_engine
from service.repository.manifest import MANIFEST_NAME, InputSize, Manifest
from service.repository.store import load_manifest

LONG_SIDE = 640


@dataclass(frozen=True)
class Standing:
    """One variant. ms: p50 of one run at the long side compared; ap50: on the photos compared, 0..1."""

    member: str
    variant: str
    ms: float
    ap50: float


def best_of(standings: Sequence[Standing]) -> list[Standing]:
    """Each member's best variant: the most accurate, the faster of equals. In the order of the members' first rows."""
    best: dict[str, Standing] = {}
    for one in standings:
        known = best.get(one.member)
        if known is None or (one.ap50, -one.ms) > (known.ap50, -known.ms):
            best[one.member] = one
    return list(best.values())


def not_worth_it(standings: Sequence[Standing]) -> dict[str, str]:
    """The rule: for each member whose best variant is slower than another's and not better, a sentence why."""
    best = best_of(standings)
    reasons = {}
    for one in best:
        faster = [other for other in best if other.ms < one.ms and other.ap50 >= one.ap50]
        if faster:
            other = max(faster, key=lambda rival: (rival.ap50, -rival.ms))
            reasons[one.member] = (
                f"{one.member} is not shipped: its best variant {one.variant} has AP.50 {one.ap50:.4f} in "
                f"{one.ms:.1f} ms, and {other.variant} has {other.ap50:.4f} in {other.ms:.1f} ms"
            )
    return reasons


def apply_rule(repository: Path, dataset: str, split: str, threads: int = 0, seconds: float = 5.0) -> dict[str, str]:
    """Time every member, shipped or not, and move each to where the rule has it. -> {member not shipped: why}.

    Members without AP on `dataset`/`split` at `LONG_SIDE` cannot be compared and stay where they are. Times are those
    of this machine and this moment, all of one run. Machine and paper families are compared with each other.
    """
    folders = member_folders(repository)
    standings = []
    work = [
        (folder, manifest, name)
        for folder, manifest in folders.items()
        for name, _ in _scored(manifest, dataset, split)
    ]
    for folder, manifest, name in tqdm(work, desc="timing", unit="variant", leave=False, disable=not work):
        file = next(file for file in manifest.files if file.variant == name)
        engine = open_cpu(name, folder / file.path, threads)
        ms = measure_engine(engine, compared_size(manifest), seconds).p50_ms
        engine.close()
        standings.append(Standing(manifest.member, name, ms, dict(_scored(manifest, dataset, split))[name]))
    reasons = not_worth_it(standings)
    judged = {one.member for one in standings}
    for folder, manifest in folders.items():
        if manifest.member in judged:
            _move(repository, folder, reasons.get(manifest.member))
    remove_empty(repository / UNSHIPPED)
    return reasons


def member_folders(repository: Path) -> dict[Path, Manifest]:
    """Folders of all members, the shipped ones first, which are the newer where both are there. Raises
    `RepositoryError` on a manifest that is none."""
    shipped = [p.parent for p in sorted(repository.glob(f"*/{MANIFEST_NAME}")) if not p.parent.name.startswith(".")]
    aside = [path.parent for path in sorted(repository.glob(f"{UNSHIPPED}/*/{MANIFEST_NAME}"))]
    unshipped = [folder for folder in aside if folder.name not in {other.name for other in shipped}]
    return {folder: load_manifest(folder / MANIFEST_NAME) for folder in (*shipped, *unshipped)}


def compared_size(manifest: Manifest) -> InputSize:
    """The widest, lowest input of `LONG_SIDE`: 480x640, which is that of the paper's latencies."""
    sizes = [size for size in manifest.input_sizes if size.long_side == LONG_SIDE] or list(manifest.input_sizes)
    return min(sizes, key=lambda size: (size.height, -size.width))


def _scored(manifest: Manifest, dataset: str, split: str) -> list[tuple[str, float]]:
    """(variant, AP.50) of what a CPU can serve and was measured on these photos at `LONG_SIDE`."""
    served = {file.variant for file in manifest.files if not file.for_gpus}
    return [
        (row.variant, row.ap50)
        for row in manifest.accuracy
        if row.variant in served and (row.dataset, row.split, row.long_side) == (dataset, split, LONG_SIDE)
    ]


def _move(repository: Path, folder: Path, reason: str | None) -> None:
    wanted = repository / folder.name if reason is None else repository / UNSHIPPED / folder.name
    if reason is not None:
        write_atomically(folder / WHY, f"{reason}\n".encode())
    if folder != wanted:
        wanted.parent.mkdir(exist_ok=True)
        shutil.rmtree(wanted, ignore_errors=True)  # an older one, put aside before this one was exported
        folder.rename(wanted)
    if reason is None:
        (wanted / WHY).unlink(missing_ok=True)
