"""The best order that the numbers tell, with no claim at all: one assignment per shape class."""

from __future__ import annotations

from collections.abc import Mapping

from ..model import Adapter, Evidence, RawState, TensorRef
from .judge import judge
from .match import by_displacement, improve
from .tables import gather


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
    tables = gather(raw, adapter, previous=previous, base=base)
    start = by_displacement(tables, fixed or {})
    return judge(tables, improve(tables, start, fixed or {}), raw, claimed=None)
