"""The best order by the numbers alone, without a claim: one assignment per shape class."""

from __future__ import annotations

from collections.abc import Mapping

from ostate.core.naming import Adapter, Evidence
from ostate.core.state import RawState
from ostate.core.tensors import TensorRef

from .judge import judge
from .paths import Paths
from .search import search
from .tables.tables import gather, is_decided, overflow_ignored, widths


def recover(
    raw: RawState,
    adapter: Adapter,
    *,
    previous: Adapter | None = None,
    base: Mapping[str, TensorRef] | None = None,
) -> Evidence:
    """Return the order that the numbers prefer, and which of its positions they prove.

    Args:
        raw: the state; slots are read here.
        adapter: the trained weights.
        previous: an earlier adapter of the same run.
        base: the base model's weights, where at hand.
    """
    with overflow_ignored():
        for sketch_rows in widths(adapter):
            tables = gather(raw, adapter, previous=previous, base=base, sketch_rows=sketch_rows)
            paths = Paths(tables.reader, tables.displaced)
            match, now = search(tables, paths, claimed=None)
            found = judge(tables, paths, match, now, raw, claimed=None)
            if is_decided(found, tables):
                break
            del tables, paths, match, now  # before the next ones are read
    return found
