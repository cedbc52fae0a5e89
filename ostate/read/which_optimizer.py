"""Which of several optimizers a person means: by number, or by the name that the program gave it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ostate.errors import ReadError, SeveralOptimizers, UnknownFormat

MOST_LISTED = 10


def choose(places: Sequence[str], wanted: int | str | None, where: str, *, texts: Sequence[str] = ()) -> int:
    """Return the number of the optimizer that is meant.

    Args:
        places: where each of them lies: a key such as `optimizers.actor`, a file name; empty for the top.
        wanted: `--optimizer`: its number from 0, its place, or a word of it; None: the only one.
        where: the file or folder, for messages.
        texts: the places with more about them, for messages.

    Raises:
        SeveralOptimizers: several, and nothing says which.
        UnknownFormat: none that is called so.
        ReadError: there is none at all.
    """
    if not places:
        raise ReadError("no optimizer state was found here", where=where, fix="pass the file that was saved with the optimizer")
    listed = "; ".join(f"{number}: {place or 'the top'}" for number, place in enumerate((texts or places)[:MOST_LISTED]))
    if wanted is None:
        if len(places) > 1:
            raise several({number: text or "the top" for number, text in enumerate(texts or places)}, where)
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


def several(texts: Mapping[int, str], where: str) -> SeveralOptimizers:
    """Return the refusal that asks which optimizer is meant.

    Args:
        texts: what `--optimizer` takes for each -> where it lies.
        where: the file or folder.
    """
    listed = "; ".join(f"{number}: {text}" for number, text in list(texts.items())[:MOST_LISTED])
    error = SeveralOptimizers(
        f"{len(texts)} optimizer states are here ({listed})",
        where=where,
        fix="choose one with --optimizer K or NAME, or take all as one state with --optimizer all",
    )
    error.texts = texts
    return error


def called(places: Sequence[str], name: str) -> list[int]:
    """Return the numbers of the places that are called `name`: wholly, else by one component of a path, else by one word."""
    ways = (lambda place: [place], lambda place: re.split(r"[./\\\[\]]+", place), lambda place: re.split(r"[\W_]+", place))
    for parts in ways:
        found = [number for number, place in enumerate(places) if name in parts(place)]
        if found:
            return found
    return []
