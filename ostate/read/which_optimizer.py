"""Which of several optimizers a person means: by number, or by the name that the program gave it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ostate.errors import ReadError, UnknownFormat

MOST_LISTED = 10


def choose(places: Sequence[str], wanted: int | str | None, where: str, *, texts: Sequence[str] = ()) -> int:
    """Return the number of the optimizer that is meant.

    Args:
        places: where each of them lies: a key such as `optimizers.actor`, a file name; empty for the top.
        wanted: `--optimizer`: its number from 0, its place, or a word of it; None: the only one.
        where: the file or folder, for messages.
        texts: the places with more about them, for messages.

    Raises:
        UnknownFormat: several, and nothing says which; or none that is called so.
        ReadError: there is none at all.
    """
    if not places:
        raise ReadError("no optimizer state was found here", where=where, fix="pass the file that was saved with the optimizer")
    listed = "; ".join(f"{number}: {place or 'the top'}" for number, place in enumerate((texts or places)[:MOST_LISTED]))
    if wanted is None:
        if len(places) > 1:
            raise UnknownFormat(f"the file holds {len(places)} optimizer states ({listed})", where=where, fix="choose one with --optimizer K or NAME")
        return 0
    if isinstance(wanted, str):
        found = called(places, wanted)
        if len(found) == 1:
            return found[0]
        how = "several optimizers are" if found else "no optimizer is"
        raise UnknownFormat(f"{how} called {wanted!r}; available: {listed}", where=where, fix="choose one of these by number")
    if not 0 <= wanted < len(places):
        raise UnknownFormat(f"no optimizer {wanted} here; available: {listed}", where=where, fix="choose one of these")
    return wanted


def called(places: Sequence[str], name: str) -> list[int]:
    """Return the numbers of the places that are called `name`: wholly, else by one component of a path, else by one word."""
    ways = (lambda place: [place], lambda place: re.split(r"[./\\\[\]]+", place), lambda place: re.split(r"[\W_]+", place))
    for parts in ways:
        found = [number for number, place in enumerate(places) if name in parts(place)]
        if found:
            return found
    return []
