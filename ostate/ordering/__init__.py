"""Names for positions: every source makes claims; shapes and groups refute some; the numbers decide among the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ostate.core.naming import Claim, Question

from .grouping.place import guesses_of
from .grouping.refute import Refused
from .sources.adapter_order import adapter_order
from .sources.convention import convention, orders_by_convention
from .sources.from_keys import has_live_names, layouts_of_keys, trained_keys
from .sources.given import given
from .sources.rebuilt.model import layouts_of, skeleton
from .sources.recorded import recorded

Source = Callable[[Question], tuple[list[Claim], list[Refused]]]


SOURCES: dict[str, Source] = {
    "recorded": recorded,
    "given": given,
    "skeleton": skeleton,
    "adapter-order": adapter_order,
    "convention": convention,
}
"""Strongest first."""


def claims(question: Question, sources: Collection[str] | None = None) -> tuple[list[Claim], list[Refused]]:
    """Return the claims that stand, and the losers with their reasons.

    Args:
        question: the state, the adapter beside it and what the user gave.
        sources: only these rows of `SOURCES`; None: all. The skeleton may import peft, so ask for it last.

    Raises:
        OrderingError: something that the user gave cannot be used.
    """
    standing: list[Claim] = []
    lost: list[Refused] = []
    for name, source in SOURCES.items():
        if sources is None or name in sources:
            found, refuted = source(question)
            standing += found
            lost += refuted
    return standing, lost


def heuristic_orders(question: Question) -> list[Claim]:
    """Return orders that programs make by hand (names sorted, groups added later), for the numbers alone to choose from.

    They are conventions: to be asked when the numbers contradict every claim, and never to be used without them.
    """
    layouts = layouts_of(question)
    from_keys = isinstance(layouts, str)
    if isinstance(layouts, str):
        found = orders_by_convention(trained_keys(question.adapter)) if question.adapter is not None else ""
        listed = [] if isinstance(found, str) else found
        layouts = [layout for rule, keys in listed for layout in layouts_of_keys("convention", rule, keys, question.adapter)]
    made: dict[tuple[tuple[str | None, ...], tuple[str | None, ...]], Claim] = {}
    for layout in layouts:
        for claim in guesses_of(layout, question)[0]:
            if not from_keys or has_live_names(claim, question.adapter):
                made.setdefault((claim.names, claim.keys), claim)
    return list(made.values())


__all__ = ["SOURCES", "claims", "heuristic_orders"]
