"""The arms of a set of variants: which of them may answer a picture, and their latencies by batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

from service.letterbox import fitting_size, sizes_by_long_side
from service.repository.manifest import InputSize

ArmKey = tuple[str, InputSize]


class ArmIndex:
    """Numbers the (variant, input size) pairs, and answers with bits of these numbers. batches: the pairs that run
    more than one picture at once."""

    def __init__(self, keys: Sequence[ArmKey], batches: Collection[ArmKey] = ()) -> None:
        self.keys, self._batches = tuple(keys), frozenset(batches)
        self._bits = {key: 1 << number for number, key in enumerate(self.keys)}
        by_variant: dict[str, list[InputSize]] = {}
        for variant, size in self.keys:
            by_variant.setdefault(variant, []).append(size)
        self._sizes = {variant: sizes_by_long_side(sizes) for variant, sizes in by_variant.items()}
        self._masks = lru_cache(maxsize=4096)(self._mask)
        self._narrow = lru_cache(maxsize=4096)(self._narrowed)

    def tight(self, width: int, height: int) -> tuple[int, ...]:
        """Numbers of the arms in the smallest input size of each variant and long side that holds the picture."""
        return self._masks(width, height)[0]

    def mask(self, width: int, height: int) -> int:
        """Bits of the arms that may answer a picture: the tight ones, and those squares of the same long sides in which
        pictures of all shapes can share a batch. 0 where no size holds it."""
        return self._masks(width, height)[1]

    def narrowed(self, mask: int, variant: str | None = None, long_side: int | None = None, most: int = 1 << 30) -> int:
        """The bits of `mask` that are of this variant and long side, where one is given, and of no side over `most`."""
        return self._narrow(mask, variant, long_side, most)

    def _narrowed(self, mask: int, variant: str | None, long_side: int | None, most: int) -> int:
        for number, (name, size) in enumerate(self.keys):
            wrong = (variant is not None and name != variant) or (long_side is not None and size.long_side != long_side)
            if wrong or size.long_side > most:
                mask &= ~(1 << number)
        return mask

    def _mask(self, width: int, height: int) -> tuple[tuple[int, ...], int]:
        tight, mask = [], 0
        for variant, sides in self._sizes.items():
            for side, sizes in sides.items():
                square = next((size for size in sizes if size.height == size.width == side), None)
                fitting = fitting_size(width, height, sizes)
                if fitting is not None:
                    tight.append(self._bits[variant, fitting].bit_length() - 1)
                    mask |= self._bits[variant, fitting]
                if square is not None and (variant, square) in self._batches:
                    mask |= self._bits[variant, square]
        return tuple(tight), mask


def batch_curve(measured: Mapping[int, float], most: int) -> tuple[float, ...]:
    """Milliseconds of batches of 1..`most` from those of some batches: [b - 1] is a batch of b, never descending.

    Between two measured batches it is linear. Below the smallest it is the smallest's; above the largest the last slope
    goes on, or, where one batch was measured, the time grows in proportion. A larger batch that was measured faster
    than a smaller one is taken to be as slow, so that nothing is predicted below a measurement.
    """
    known: list[tuple[int, float]] = []
    for batch, ms in sorted(measured.items()):
        known.append((batch, max(ms, known[-1][1]) if known else ms))
    curve = []
    for batch in range(1, most + 1):
        if batch <= known[0][0]:
            curve.append(known[0][1])
            continue
        if len(known) == 1:
            curve.append(known[0][1] * batch / known[0][0])
            continue
        k = next((k for k in range(1, len(known)) if batch <= known[k][0]), len(known) - 1)
        (b0, ms0), (b1, ms1) = known[k - 1], known[k]
        curve.append(ms0 + (ms1 - ms0) * (batch - b0) / (b1 - b0))
    return tuple(curve)
