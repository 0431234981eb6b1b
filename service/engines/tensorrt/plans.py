"""Plans on disk: which one can be used here, where it lies, how a new one is written.

A plan lies in its member's folder and in the manifest, or, where the repository cannot be written, in a cache folder
with a file of its own beside it. Its file's name ends in the start of its own hash, so that a new plan never overwrites
the one that is known: whatever moment a writer is killed at, what was usable before still is.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from service.engines.tensorrt.api import numbers
from service.repository.manifest import MANIFEST_NAME, Manifest, ModelFile, Plan
from service.repository.store import load_manifest, sha256_of

_FORWARD = {10: 11}
"""Major versions across which version-compatible plans run: those of 10 on 11 (TensorRT 11 support matrix)."""

_AMPERE = (8, 0)


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan and its file."""

    plan: Plan
    path: Path


def usable(plan: Plan, file: ModelFile, tensorrt: str, compute_capability: str, gpu: str = "") -> str | None:
    """None where TensorRT of version `tensorrt` can run `plan` of `file` on such a GPU, else a sentence why not.

    compute_capability: of the GPU here, such as "9.0"; gpu: its name. TensorRT promises a plan without hardware
    compatibility for its own model of GPU only, and warns on another of the same compute capability; without `gpu`
    that is let through. TensorRT itself has no such check but loading the plan (support matrix of 11.4).
    """
    if plan.variant != file.variant or plan.model_sha256 != file.sha256:
        return f"it was built from another {file.variant} than {file.path} is now"
    return _version_reason(plan, tensorrt) or _gpu_reason(plan, compute_capability, gpu)


def _version_reason(plan: Plan, tensorrt: str) -> str | None:
    built, here = numbers(plan.tensorrt), numbers(tensorrt)
    if built == here:
        return None
    wrong = f"it was built with TensorRT {plan.tensorrt}, and {tensorrt} is here"
    if not plan.version_compatible:
        return wrong
    if here[0] == built[0]:
        return None if here > built else f"{wrong}: version-compatible plans run on later versions, not on earlier ones"
    if _FORWARD.get(built[0]) == here[0]:
        return None
    return f"{wrong}: no version-compatible plan of {built[0]} runs on {here[0]}"


def _gpu_reason(plan: Plan, compute_capability: str, gpu: str) -> str | None:
    if plan.hardware_compatible == "ampere_plus":
        if numbers(compute_capability) >= _AMPERE:
            return None
        return f"it needs a GPU of compute capability 8.0 or later, and this one has {compute_capability}"
    if plan.compute_capability != compute_capability:
        return (
            f"it was built for compute capability {plan.compute_capability} ({plan.gpu}), and this GPU has "
            f"{compute_capability}"
        )
    if plan.hardware_compatible == "none" and gpu and gpu != plan.gpu:
        return f"it was built for {plan.gpu}, and this is {gpu}"
    return None


def damage(stored: StoredPlan) -> str | None:
    """What is wrong with a plan's file, as a sentence, or None."""
    path, plan = stored.path, stored.plan
    try:
        size = path.stat().st_size
        if size != plan.size_bytes:
            return f"{path} has {size} bytes, not {plan.size_bytes}"
        return None if sha256_of(path) == plan.sha256 else f"{path} is damaged: its sha256 is not the one written down"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"


def name_of(plan: Plan) -> str:
    """What tells a plan from others: `d0-fp16.trt10.16.1.11.sm89-nvidia-l4.0123456789ab`, with `.efficient` where NMS
    is the plugin's, and without the GPU's name where another GPU will do."""
    kind = "" if plan.nms == "plain" else f".{plan.nms}"
    arch = plan.compute_capability.replace(".", "")
    gpu = "-" + re.sub(r"[^a-z0-9]+", "-", plan.gpu.lower()).strip("-") if plan.hardware_compatible == "none" else ""
    return f"{plan.variant}{kind}.trt{plan.tensorrt}.sm{arch}{gpu}.{plan.model_sha256[:12]}"


def file_name(plan: Plan) -> str:
    """Of the plan's file: its name, the start of its own hash, `.plan`."""
    return f"{name_of(plan)}.{plan.sha256[:8]}.plan"


def stored_plans(folder: Path, manifest: Manifest, cache: Path | None) -> tuple[StoredPlan, ...]:
    """All plans of a member that are written down, usable or not: those of its manifest, then those in the cache."""
    found = [StoredPlan(plan, folder / plan.path) for plan in manifest.plans]
    variants = {file.variant for file in manifest.files}
    for path in sorted(engines_folder(cache).glob("*.json")) if cache else ():
        try:
            plan = Plan.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue  # half of a description, or of another version of this program: it will be built again
        if plan.variant in variants:
            found.append(StoredPlan(plan, path.parent / plan.path))
    return tuple(found)


def find(
    stored: tuple[StoredPlan, ...], file: ModelFile, tensorrt: str, compute_capability: str, gpu: str = ""
) -> tuple[StoredPlan | None, list[str]]:
    """The first whole plan of `file` that can be used here, and a sentence about each one before it that cannot."""
    reasons: list[str] = []
    for one in stored:
        if one.plan.variant == file.variant:
            reason = usable(one.plan, file, tensorrt, compute_capability, gpu)
            reason = f"{one.path.name}: {reason}" if reason else damage(one)
            if reason is None:
                return one, reasons
            reasons.append(reason)
    return None, reasons


def save(folder: Path, cache: Path | None, plan: Plan, data: bytes) -> StoredPlan:
    """`save_in_repository`, or `save_in_cache` where the repository cannot be written and there is a cache.

    Raises OSError, `RepositoryError`.
    """
    if cache is None or os.access(folder, os.W_OK):
        try:
            return save_in_repository(folder, plan, data)
        except OSError:  # a file system that is mounted read-only, to which the rights say nothing
            if cache is None:
                raise
    return save_in_cache(cache, plan, data)


def save_in_repository(folder: Path, plan: Plan, data: bytes) -> StoredPlan:
    """Write the plan into its member's folder, then the manifest, in which it replaces plans of the same name and all
    that were built from models which are not there any more; their files go last. Raises OSError, `RepositoryError`."""
    plan = plan.model_copy(update={"path": file_name(plan)})
    _write(folder / plan.path, data)
    path = folder / MANIFEST_NAME
    manifest = load_manifest(path)  # now, because a build takes minutes, in which others may have written it
    models = {(file.variant, file.sha256) for file in manifest.files}
    kept = tuple(
        one for one in manifest.plans
        if name_of(one) != name_of(plan) and (one.variant, one.model_sha256) in models
    )  # fmt: skip
    changed = Manifest.model_validate(manifest.model_copy(update={"plans": (*kept, plan)}).model_dump())
    _write(path, (changed.model_dump_json(indent=2) + "\n").encode())
    for one in {old.path for old in manifest.plans} - {new.path for new in changed.plans}:
        (folder / one).unlink(missing_ok=True)
    _remove(folder, plan.variant, {one.path for one in changed.plans})
    return StoredPlan(plan, folder / plan.path)


def save_in_cache(cache: Path, plan: Plan, data: bytes) -> StoredPlan:
    """Write the plan into `<cache>/engines`, then its description NAME.json. Raises OSError."""
    folder = engines_folder(cache)
    plan = plan.model_copy(update={"path": file_name(plan)})
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / plan.path, data)
    _write(folder / f"{name_of(plan)}.json", (plan.model_dump_json(indent=2) + "\n").encode())
    _remove(folder, name_of(plan), {plan.path})
    return StoredPlan(plan, folder / plan.path)


def engines_folder(cache: Path) -> Path:
    """Where plans and timing caches lie in a cache folder."""
    return cache / "engines"


def _remove(folder: Path, start: str, kept: set[str]) -> None:
    """Files of plans that no description names: what was replaced, and what writers that were killed have left."""
    for path in (*folder.glob(f"{start}.*.plan"), *folder.glob(f".{start}.*.plan.*")):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    """Beside the target, onto the disk, then renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
