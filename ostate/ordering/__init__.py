"""Which parameter is position i? Every source of names makes claims; shapes and groups refute some; the numbers decide among the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ostate.model import Claim, Question

from .adapter_order import adapter_order
from .convention import convention
from .given import given
from .recorded import recorded
from .refute import Refused
from .skeleton import skeleton

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


__all__ = ["SOURCES", "claims"]
