"""What a search says of its result beside the genotype."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.search.relaxation import kept_by_rule


def both_rules(values: Mapping[str, Sequence[float]], threshold: float = 0.5) -> str:
    """One line: how many candidates each cell of AutoFA keeps by either reading of Eq. 2; empty for other spaces.

    values: probabilities by name, such as `alpha_top_down_P5`, as a line of `architecture.jsonl` has them.
    """
    relative, literal = [], []
    for path in ("top_down", "bottom_up"):
        start = f"alpha_{path}_"
        cells = {name.removeprefix(start): alpha for name, alpha in values.items() if name.startswith(start)}
        if not cells:
            return ""
        counts = {cell: kept_by_rule(alpha, threshold) for cell, alpha in cells.items()}
        words = path.replace("_", "-")
        relative.append(f"{words} " + " ".join(f"{cell} {kept}" for cell, (kept, _) in counts.items()))
        literal.append(f"{words} " + " ".join(f"{cell} {kept}" for cell, (_, kept) in counts.items()))
    return (
        f"candidates with alpha >= {threshold:g} x the largest: {', '.join(relative)}; with alpha >= {threshold:g}, "
        f"as Eq. 2 is printed: {', '.join(literal)}"
    )


def last_probabilities(history: Path) -> dict[str, list[float]]:
    """Of the last line of an `architecture.jsonl`; empty where there is none."""
    lines = history.read_text(encoding="utf-8").splitlines() if history.is_file() else []
    return dict(json.loads(lines[-1])["values"]) if lines else {}


def caveat(space: str) -> str:
    """What is to be known of the choice of the best seed in this space, in a line; empty where nothing is."""
    if not space.startswith("pc-darts"):
        return ""
    return (
        f"note: the best seed was chosen by an AP that says nothing for {space}: the search's weights see a quarter of "
        "the channels and do not fit the discrete neck; train the seeds' genotypes to compare them"
    )
