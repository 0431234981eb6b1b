"""Where pictures and annotations lie: WIDER Face's own directories, or the shorter form of the same layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SplitPaths:
    """images: folder that annotation names are relative to; annotations: the `*_bbx_gt.txt` file."""

    images: Path
    annotations: Path


def resolve_split(root: Path, split: str) -> SplitPaths:
    """Find `split` below `root` in either layout.

    WIDER:  root/WIDER_train/images, root/wider_face_split/wider_face_train_bbx_gt.txt
    short:  root/train/images,       root/split/train_bbx_gt.txt

    Raises FileNotFoundError that lists what was looked for.
    """
    candidates = [
        SplitPaths(root / split / "images", root / "split" / f"{split}_bbx_gt.txt"),
        SplitPaths(root / f"WIDER_{split}" / "images", root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt"),
    ]
    for paths in candidates:
        if paths.images.is_dir() and paths.annotations.is_file():
            return paths
    tried = "; ".join(f"{p.images} with {p.annotations}" for p in candidates)
    raise FileNotFoundError(f"no split {split!r} below {root}: looked for {tried}")
