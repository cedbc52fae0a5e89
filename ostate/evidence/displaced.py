"""Tensors whose start is known, held against the updates of their siblings: of two whose moments were exchanged, each lies along the other's.

W - W_start is the sum of W's updates and lies along its last one, -u. Another layer's u is another direction. No gauge is asked, so every tensor
with a known start can be looked at, wherever it lies in the model. Directions of layers may have something in common, whose distribution nobody
knows: this makes names suspect, and proves none.

The start is a number that a method gives to every element, or the tensor of an earlier checkpoint or of the base model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ostate.core.tensors import Slot

from .look import Source, direction_of, moments_of
from .statistics import median
from .tables.stream_rows import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

COMPARED = 1 << 16
"""First numbers of each tensor that are compared."""
TOGETHER = 1 << 23
"""Numbers of all siblings together that are held, twice, float64: of many siblings fewer numbers each are compared."""
MOST = 4096
"""Siblings of which each is compared with each; more are not looked at, and stay what the other tests make of them."""
SHORTEST = 8
"""Numbers of a tensor whose direction is one: of four, unrelated ones are alike now and then."""
ALONG = 0.5
"""Cosine between displacement and update that the middle sibling has at least, or the two at each other's place: late in a run none lies along its
last update."""
BETTER = 0.3
"""By how much the cosines of two at each other's place exceed both their own. Healthy runs of `tests/evidence/method_nets.py`, 1 to 40 steps: .27 at
most in 7,500, mostly below 0; whole models beside their base, 96 runs of ten architectures, 1 to 60 steps: .11 at most in 2,087 groups of siblings,
and -.19 among matrices; two that were exchanged: .4 to 1."""


class KnownStart(NamedTuple):
    """What is known of a tensor's start."""

    kind: str
    """Tensors of one kind and shape are siblings."""
    value: float | Slot
    """Every element's first number, or the tensor as it was, of the same shape."""
    halved: bool = False
    """True where elements come in pairs that begin equal: their differences are what moved."""


def misplaced_values(source: Source, keys: Sequence[str | None], stated: Sequence[int], starts: Mapping[str, KnownStart]) -> frozenset[int]:
    """Return the positions whose moments fit a sibling's tensor, whose moments fit theirs.

    Args:
        source: the state and the weights.
        keys: adapter key by position, as claimed.
        stated: positions with state.
        starts: by adapter key.
    """
    siblings: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for position in stated:
        key = keys[position]
        if key is not None and key in starts and source.adapter.tensors[key].numel >= SHORTEST:
            siblings.setdefault((starts[key].kind, source.adapter.tensors[key].shape), []).append(position)
    found: set[int] = set()
    for positions in siblings.values():
        if 1 < len(positions) <= MOST:
            found |= _exchanged(source, keys, positions, starts)
    return frozenset(found)


def _exchanged(source: Source, keys: Sequence[str | None], positions: Sequence[int], starts: Mapping[str, KnownStart]) -> set[int]:
    most = min(COMPARED, max(TOGETHER // len(positions), SHORTEST))
    directions = {position: _directions(source, key, position, starts[key], most) for position in positions if (key := keys[position]) is not None}
    known = [(position, pair) for position, pair in directions.items() if pair is not None]
    if len(known) < 2:
        return set()
    moved, updates = (np.stack([pair[side] for _, pair in known]) for side in (0, 1))
    cosines = moved @ -updates.T
    own = np.diag(cosines)
    there = np.minimum(cosines, cosines.T)
    exchanged = there - np.maximum(own[:, None], own[None, :]) >= BETTER
    if median(own) < ALONG:
        exchanged &= there >= ALONG
    return {position for (position, _), row in zip(known, exchanged) if row.any()}


def _directions(source: Source, key: str, position: int, start: KnownStart, most: int) -> tuple[Array, Array] | None:
    """Return W - W_start and u, (n <= most,) each and of length 1; None where the position keeps no such moments, or nothing moved."""
    entry, ref = source.raw.entries[position], source.adapter.tensors[key]
    first, second = moments_of(source, entry)
    if first is None or entry.numel != ref.numel:
        return None
    count = min(ref.numel, most)
    readers = [Rows(slot, count, strip=1) for slot in (ref, entry.slots[first], *([entry.slots[second]] if second else []))]
    weight, m, *rest = (each.take(1)[0] for each in readers)
    begun = start.value
    if not isinstance(begun, float):
        readers.append(Rows(begun, count, strip=1))
        begun = readers[-1].take(1)[0]
    if not all(each.finite for each in readers):
        return None
    moved, u = weight - begun, direction_of(source, entry).of(m, np.sqrt(np.maximum(rest[0], 0)) if rest else None)
    if start.halved:
        moved, u = moved[0::2] - moved[1::2], u[0::2] - u[1::2]
    lengths = [float(np.linalg.norm(each)) for each in (moved, u)]
    if not all(length > 0 for length in lengths):
        return None
    return np.asarray(moved / lengths[0], np.float64), np.asarray(u / lengths[1], np.float64)
