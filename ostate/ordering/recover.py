"""The best order that the numbers tell, with no claim at all: one assignment per shape class."""

from __future__ import annotations

from collections.abc import Mapping

from ostate.model import Adapter, Evidence, RawState, TensorRef
from ostate.ordering.judge import judge
from ostate.ordering.match import search
from ostate.ordering.paths import Paths
from ostate.ordering.tables import closer, gather, settles


def recover(
    raw: RawState,
    adapter: Adapter,
    *,
    previous: Adapter | None = None,
    base: Mapping[str, TensorRef] | None = None,
    fixed: Mapping[int, str] | None = None,
) -> Evidence:
    """Return the order that the numbers prefer, and which of its positions they prove.

    Args:
        raw: the state; slots are read here.
        adapter: the trained weights.
        previous: an earlier adapter of the same run.
        base: the base model's weights, where at hand.
        fixed: position -> key that must be kept.
    """

    def asked(thin: int) -> tuple[Evidence, bool]:
        tables = gather(raw, adapter, previous=previous, base=base, thin=thin)
        paths = Paths(tables.reader, tables.displaced)
        match, now = search(tables, paths, claimed=None, fixed=fixed or {})
        found = judge(tables, paths, match, now, raw, claimed=None)
        return found, settles(found, tables)

    return closer(asked, adapter)
