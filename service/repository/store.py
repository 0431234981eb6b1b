"""Read a model repository and refuse it, with every reason at once, where a file is missing or damaged."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from service.repository.manifest import MANIFEST_NAME, Manifest, ModelFile


class RepositoryError(RuntimeError):
    """The repository cannot be served; the message names each file at fault and what to do."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One executable file of one member."""

    manifest: Manifest
    file: ModelFile
    path: Path

    @property
    def name(self) -> str:
        return self.file.variant


@dataclass(frozen=True, slots=True)
class Repository:
    """All variants, in the order of their names."""

    root: Path
    variants: tuple[Variant, ...]


def load_manifest(path: Path) -> Manifest:
    """Read one manifest. Raises `RepositoryError` naming the file and each field at fault."""
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RepositoryError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()[:5])
        raise RepositoryError(f"{path}: not a manifest of version 1 ({faults}); export the member again") from None


def load_repository(root: Path, untrained: bool = False) -> Repository:
    """Load and verify every member below `root`, hidden folders left out. Raises `RepositoryError` that lists all
    faults; a member of fresh weights is one, unless `untrained` allows it, as `export` does to time it."""
    if not root.is_dir():
        raise RepositoryError(f"no model repository at {root.absolute()}: set ASFD_REPOSITORY to its folder")
    manifests = [path for path in sorted(root.glob(f"*/{MANIFEST_NAME}")) if not path.parent.name.startswith(".")]
    # Sorted out here, because a member that silently disappears is found only by whoever misses its answers.
    folders = sorted({path.parent for path in root.glob("*/*.onnx")})
    strays = [p for p in folders if not p.name.startswith(".") and not (p / MANIFEST_NAME).exists()]
    if not manifests:
        raise RepositoryError(f"{root.absolute()} holds no <member>/{MANIFEST_NAME}; see python -m export --help")
    variants: list[Variant] = []
    faults = [f"{path}: model files without {MANIFEST_NAME}; restore it or remove the folder" for path in strays]
    for path in manifests:
        try:
            manifest = load_manifest(path)
        except RepositoryError as error:
            faults.append(str(error))
            continue
        if not manifest.trained and not untrained:
            faults.append(f"{path}: {manifest.member} has fresh weights, for timing only; train it and export it again")
        for file in manifest.files:
            fault = verify_file(path.parent / file.path, file)
            if fault:
                faults.append(fault)
            variants.append(Variant(manifest, file, path.parent / file.path))
    names = [variant.name for variant in variants]
    faults += [f"variant {name!r} occurs in two members" for name in sorted({n for n in names if names.count(n) > 1})]
    if faults:
        raise RepositoryError("the model repository cannot be used: " + "; ".join(faults))
    return Repository(root, tuple(sorted(variants, key=lambda variant: variant.name)))


def for_cpu(repository: Repository) -> tuple[Repository, tuple[str, ...]]:
    """What a CPU serves, and the names of the variants left out, which are for GPUs (`ModelFile.for_gpus`).

    Raises `RepositoryError` where nothing is left.
    """
    kept = tuple(variant for variant in repository.variants if not variant.file.for_gpus)
    if not kept:
        raise RepositoryError(f"{repository.root.absolute()} has only fp16 variants, for GPUs; export fp32 beside them")
    left_out = tuple(variant.name for variant in repository.variants if variant.file.for_gpus)
    return Repository(repository.root, kept), left_out


def verify_file(path: Path, file: ModelFile) -> str | None:
    """What is wrong with a model file, as a sentence, or None."""
    if not path.is_file():
        return f"{path}: the file is missing; restore it or export the member again"
    try:
        size = path.stat().st_size
        if size != file.size_bytes:
            return f"{path}: {size} bytes, but the manifest says {file.size_bytes}; restore or export again"
        digest = sha256_of(path)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror}); give the service's user the right to read it"
    if digest != file.sha256:
        return f"{path}: its sha256 differs from the manifest's, so it is damaged; restore it or export again"
    return None


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
