"""Judge a claimed order by fitted densities: proven, contradicted, or silent with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ostate.core.naming import Adapter, Evidence
from ostate.core.state import RawState
from ostate.core.tensors import TensorRef

from .densities import fit_densities
from .judge import judge
from .paths import Paths
from .search import from_keys, search, single_scores
from .tables.tables import gather, is_decided, overflow_ignored, widths

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def verify(
    keys: Sequence[str | None],
    raw: RawState,
    adapter: Adapter,
    *,
    previous: Adapter | None = None,
    base: Mapping[str, TensorRef] | None = None,
) -> Evidence:
    """Return what the numbers say of an order.

    The best order is sought from the claim and from the numbers alone. The claim is proven where the better end agrees with it and no other
    order comes near, contradicted where another one is clearly better.

    Args:
        keys: the claim, adapter key by position; None where it says nothing or the file does not hold the tensor.
        raw: the state; slots are read here.
        adapter: the trained weights.
        previous: an earlier adapter of the same run.
        base: the base model's weights, where at hand.
    """
    likely = {position: key for position, key in enumerate(keys) if key is not None}

    with overflow_ignored():
        for sketch_rows in widths(adapter):
            tables = gather(raw, adapter, previous=previous, base=base, likely=likely, sketch_rows=sketch_rows)
            paths = Paths(tables.reader, tables.displaced, tables.precomputed)
            match, now = search(tables, paths, claimed=from_keys(keys, tables))
            found = judge(tables, paths, match, now, raw, claimed=keys)
            if is_decided(found, tables):
                break
            del tables, paths, match, now  # before the next ones are read
    return found


@dataclass(frozen=True, slots=True)
class Compared:
    """Keys and positions of one shape, both in the order of the claim, and how well each pair of them belongs together."""

    keys: tuple[str, ...]
    positions: tuple[int, ...]
    scores: NDArray[np.floating]
    """(key, position): natural log of how much likelier the two belong together than not, all others held as claimed."""


def compare(keys: Sequence[str | None], raw: RawState, adapter: Adapter) -> list[Compared]:
    """Return for each shape how well every key that is claimed belongs to every position, for whoever wants to look.

    Args:
        keys: adapter key by position.
        raw: the state; slots are read here.
        adapter: the trained weights.
    """
    likely = {position: key for position, key in enumerate(keys) if key is not None}
    tables = gather(raw, adapter, previous=None, base=None, likely=likely, sketch_rows=widths(adapter)[0])
    match = from_keys(keys, tables)
    if not match:
        return []
    paths = Paths(tables.reader, tables.displaced, tables.precomputed)
    found = single_scores(tables, paths, match, fit_densities(tables, paths, match)).by_shape
    out = []
    for shape, scores in found.items():
        known, positions = tables.keys_of_shape[shape], tables.positions_of_shape[shape]
        rows = sorted((row for row, key in enumerate(known) if key in match), key=lambda row: match[known[row]])
        columns = [positions.index(match[known[row]]) for row in rows]
        if rows:
            out.append(Compared(tuple(known[row] for row in rows), tuple(positions[c] for c in columns), scores[rows][:, columns]))
    return out
