"""The repository's index: every member and variant, and which of Table 7's members are not there. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from service.repository.manifest import Manifest
from service.repository.store import load_repository

TABLE_7: Mapping[str, str] = {
    "d0": "R18-FA-Hx1-64",
    "d1": "R18-FA-Hx3-128",
    "d2": "R34-FA-Hx3-192",
    "d3": "R50-FAE-Hx3-192",
    "d4": "R50-FAE-Hx4-256",
    "d5": "R101-FAE-Hx4-256",
    "d6": "R101-FAE-FA-FA-Hx4-256",
}
"""Names and single paths of `training.family.MEMBERS`, which needs torch to be read."""

UNSHIPPED, WHY = ".unshipped", "WHY.txt"


class VariantEntry(BaseModel):
    """ap50: by long side, of the first data set that the manifest lists; dataset: its name and split; plans: what each
    of TensorRT's plans of it was built for."""

    variant: str
    precision: str
    mib: float
    dataset: str
    ap50: dict[int, float]
    plans: list[str]


class MemberEntry(BaseModel):
    """single_path: empty where the neck is not AutoFAE; parameters: trainable numbers; budget_ms, found_for: of members
    of a machine family."""

    member: str
    title: str
    single_path: str
    family: str
    budget_ms: float | None
    found_for: str
    trained: bool
    parameters: int
    gmacs_vga: float
    variants: list[VariantEntry]


class Absent(BaseModel):
    """A member that is not there, and why."""

    member: str
    single_path: str
    reason: str


class Index(BaseModel):
    """What `python -m export list --json` prints."""

    repository: str
    members: list[MemberEntry]
    absent: list[Absent]


def index_of(repository: Path) -> Index:
    """Load and check the repository. Members of fresh weights are listed. Raises `RepositoryError`."""
    loaded = load_repository(repository, untrained=True)
    manifests = {variant.manifest.member: variant.manifest for variant in loaded.variants}
    why = why_unshipped(repository)
    wanted = {**TABLE_7, **{member: "" for member in why if member not in TABLE_7}}
    absent = [
        Absent(member=member, single_path=path, reason=why.get(member, "not trained"))
        for member, path in wanted.items()
        if member not in manifests
    ]
    return Index(
        repository=str(repository), members=[_entry(manifests[name]) for name in sorted(manifests)], absent=absent
    )


def why_unshipped(repository: Path) -> dict[str, str]:
    """{member: sentence} of what `python -m export all` has put aside."""
    found = sorted(repository.glob(f"{UNSHIPPED}/*/{WHY}"))
    return {path.parent.name: path.read_text(encoding="utf-8").strip() for path in found}


def lines(index: Index) -> list[str]:
    """The index as text: a line a member, a line a variant below it, and what is not there."""
    text = []
    for member in index.members:
        family = "Table 7" if member.family == "paper" else f"{member.budget_ms:g} ms on {member.found_for}"
        fresh = "" if member.trained else "; FRESH WEIGHTS, for timing only"
        text.append(
            f"{member.member:4} {member.single_path or member.title}; family: {family}; "
            f"{member.parameters / 1e6:.1f} M parameters, {member.gmacs_vga:.1f} GMAC{fresh}"
        )
        for one in member.variants:
            scores = ", ".join(f"{side}: {ap50:.3f}" for side, ap50 in one.ap50.items())
            measured = f"AP.50 on {one.dataset} by long side: {scores}" if scores else "AP not measured"
            text.append(f"  {one.variant:12} {one.precision}  {one.mib:6.1f} MiB  {measured}")
            text += [f"    plan for {plan}" for plan in one.plans]
    text += [f"{one.member:4} {one.single_path}; {one.reason}" for one in index.absent]
    return text


def _entry(manifest: Manifest) -> MemberEntry:
    shape = manifest.architecture
    variants = []
    for file in manifest.files:
        rows = [row for row in manifest.accuracy if row.variant == file.variant]
        first = [row for row in rows if (row.dataset, row.split) == (rows[0].dataset, rows[0].split)]
        variants.append(
            VariantEntry(
                variant=file.variant, precision=file.precision, mib=round(file.size_bytes / 2**20, 1),
                dataset=f"{rows[0].dataset}/{rows[0].split}" if rows else "",
                ap50={row.long_side: row.ap50 for row in sorted(first, key=lambda row: row.long_side)},
                plans=[
                    f"TensorRT {plan.tensorrt} on {plan.gpu}, batches to {plan.max_batch}"
                    for plan in manifest.plans if plan.variant == file.variant
                ],
            )
        )  # fmt: skip
    return MemberEntry(
        member=manifest.member, title=manifest.title, single_path=shape.single_path, family=manifest.family,
        budget_ms=manifest.budget_ms, found_for=manifest.found_for, trained=manifest.trained,
        parameters=shape.parameters, gmacs_vga=shape.gmacs_vga, variants=variants,
    )  # fmt: skip
