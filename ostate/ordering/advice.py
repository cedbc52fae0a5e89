"""What could still settle an order: never what was given already."""

from __future__ import annotations

from typing import Protocol

ORDER = "--order FILE (one name per line, in the optimizer's order)"
BASE = "--base DIR (the base model's config.json, and its weights where they are at hand)"
PREVIOUS = "--previous DIR (an earlier adapter of the run)"
NOTHING = "all that could settle it was given: only the adapter of the very save tells more"


class Asked(Protocol):
    """What a person gave, in a question or in options; None: not given."""

    @property
    def order(self) -> str | None:
        """`--order`."""
        ...

    @property
    def base(self) -> str | None:
        """`--base`."""
        ...

    @property
    def previous(self) -> object:
        """`--previous`."""
        ...


def ways(asked: Asked, *wanted: str) -> str:
    """Return `pass A, B or C` of the ways that are `wanted` and were not taken yet, or that none is left.

    Args:
        asked: what was given.
        wanted: of ORDER, BASE, PREVIOUS, the best first.
    """
    given = {ORDER: asked.order, BASE: asked.base, PREVIOUS: asked.previous}
    left = [way for way in wanted if given[way] is None]
    return f"pass {' or '.join([', '.join(left[:-1]), left[-1]] if left[1:] else left)}" if left else NOTHING
