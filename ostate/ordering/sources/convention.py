"""The order that a model's modules have by convention, where no base configuration is at hand: layers by number, modules as their authors wrote them.

A convention is never written down as a name without the numbers' word. Where a module is not in the tables, there is no claim.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from functools import cmp_to_key
from itertools import combinations, product
from typing import Protocol

from ostate.core.foreign import number_in
from ostate.core.names import ADAPTER_CONTAINERS
from ostate.core.naming import Claim, Question

from ..grouping.refute import Refused, refused
from .from_keys import claims_of_keys, trained_keys
from .module_orders import BESIDE, DIFFUSERS, FAMILIES, PLACES, TOWERS

_FACTORS = ("lora_down", "lora_up", "down", "up", "lora_a", "lora_b")
"""What others than PEFT call the two factors, each pair in the order of its definition."""
_CONTAINER = {word: rank for rank, word in enumerate(("base_layer", *ADAPTER_CONTAINERS, *_FACTORS))}
_DIFFUSERS = re.compile(r"[.$](?:to_[qkv]|to_out|add_[qkv]_proj|to_qkv_mlp_proj)[.$]")


def convention(question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return what the module order of the architecture says, cut by every trainer's rule; nothing where a module is unknown."""
    if question.adapter is None or question.adapter.kind == "model":
        return [], []
    found = orders_by_convention(trained_keys(question.adapter))
    if isinstance(found, str):
        return [], [refused("convention", "module order", found)]
    claims: list[Claim] = []
    lost: list[Refused] = []
    for rule, keys in found:
        more, reasons = claims_of_keys("convention", rule, keys, question)
        claims += more
        lost = lost or reasons
    return claims, lost


def orders_by_convention(keys: Sequence[str]) -> list[tuple[str, list[str]]] | str:
    """Return the keys in every order that a convention gives them, and its name; or why there is none.

    Releases, or models of the same names, may differ: then several orders stand, for the numbers to choose from.
    """
    if not keys:
        return "no keys"
    towers: dict[tuple[str, ...], list[str]] = {}
    for key in keys:
        towers.setdefault(_tower(components(key)), []).append(key)
    options = {tower: _families(tower, own) for tower, own in towers.items()}
    if not any(options.values()):
        return "the architecture is not in the table of conventions"
    found: dict[tuple[str, ...], str] = {}
    unknown = ""
    for choice in product(*(known or [("", _Rank(()))] for known in options.values())):
        try:
            ordered = in_order(keys, dict(zip(options, (order for _, order in choice))))
        except LookupError as error:
            unknown = unknown or f"no convention orders {error.args[0]}"
            continue
        found.setdefault(tuple(ordered), "module order of " + ", ".join(dict.fromkeys(name for name, _ in choice if name)))
    return [(name, list(ordered)) for ordered, name in found.items()] or unknown


class Known(Protocol):
    """What a family of models knows of the order of its modules."""

    def before(self, one: str, other: str) -> int | None:
        """Return a negative number when `one` is defined before `other`, a positive one when after, None where it is not known."""


class _Rank:
    """One list of words for all levels."""

    def __init__(self, words: Sequence[str]) -> None:
        self.rank = {word: index for index, word in enumerate(words)}

    def before(self, one: str, other: str) -> int | None:
        return self.rank[one] - self.rank[other] if one in self.rank and other in self.rank else None


class _Chains:
    """A list for each set of siblings."""

    def __init__(self, chains: Sequence[str]) -> None:
        self.pairs = {pair for chain in chains for pair in combinations(chain.split(), 2)}

    def before(self, one: str, other: str) -> int | None:
        return -1 if (one, other) in self.pairs else 1 if (other, one) in self.pairs else None


def components(key: str) -> list[str]:
    """Return a key in components; some trainers write `$$` for the dots of a module's name."""
    return key.replace("$$", ".").split(".")


def _tower(parts: Sequence[str]) -> tuple[str, ...]:
    last = max((at for at, part in enumerate(parts) if part in TOWERS), default=-1)
    return tuple(parts[: last + 1])


def _families(tower: tuple[str, ...], keys: Sequence[str]) -> list[tuple[str, Known]]:
    """Return the families that one tower's keys look like, one for every order that they give these keys."""
    text = "\n".join(keys)
    here = {part for key in keys for part in components(key)}
    alike: dict[tuple[str, ...], tuple[str, Known]] = {}
    if _DIFFUSERS.search(text):
        for name, chains in DIFFUSERS.items():
            present = (" ".join(word for word in chain.split() if word in here) for chain in chains)
            alike.setdefault(tuple(sorted({chain for chain in present if " " in chain})), (name, _Chains(chains)))
    else:
        first = next((pattern for _, pattern, _ in FAMILIES if re.search(pattern, text)), None)
        for name, pattern, words in FAMILIES:
            if pattern == first:
                alike.setdefault(tuple(word for word in words if word in here), (name, _Rank(words)))
    if len(alike) < 2:
        return list(alike.values())
    distinct: dict[tuple[str, ...], tuple[str, Known]] = {}
    for name, known in alike.values():
        with contextlib.suppress(LookupError):
            distinct.setdefault(tuple(in_order(keys, {tower: known})), (name, known))
    return list(distinct.values())


def in_order(keys: Sequence[str], known: Mapping[tuple[str, ...], Known]) -> list[str]:
    """Return the keys in the order in which a model defines them.

    Args:
        keys: of the adapter file.
        known: tower (the path of a model within the model; empty: what lies around) -> what its family knows.

    Raises:
        LookupError: two modules lie side by side whose order the tables do not know.
    """
    parts = {key: components(key) for key in keys}

    def compare(one: str, other: str) -> int:
        left, right = parts[one], parts[other]
        for at, (a, b) in enumerate(zip(left, right)):
            if a != b:
                return _before(a, b, known.get(_tower(left[:at]), _NOTHING))
        return len(left) - len(right)

    return sorted(keys, key=cmp_to_key(compare))


def _before(one: str, other: str, known: Known) -> int:
    """Return a negative number when `one` is defined before `other`, its sibling."""
    left, right = number_in(one), number_in(other)
    if left is not None and right is not None:
        return left - right
    listed = known.before(one, other)
    if listed is not None:
        return listed
    if one in _CONTAINER and other in _CONTAINER:
        return _CONTAINER[one] - _CONTAINER[other]
    if {one, other} == {"weight", "bias"}:
        return -1 if one == "weight" else 1
    for row in BESIDE:
        if one in row and other in row:
            return row.index(one) - row.index(other)
    places = [_place(one), _place(other)]
    if None not in places and places[0] != places[1]:
        return (places[0] or 0) - (places[1] or 0)
    raise LookupError(f"{one!r} and {other!r}")


def _place(word: str) -> int | None:
    return next((index for index, row in enumerate(PLACES) if word in row), None)


_NOTHING = _Rank(())
