"""The order that a model's modules have by convention, where no base configuration is at hand: layers by number, modules as their authors wrote them.

A convention is never written down as a name without the numbers' word. Where a module is not in the tables, there is no claim.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cmp_to_key, lru_cache
from itertools import combinations, product
from typing import NamedTuple, Protocol

from ostate.core.foreign import number_in
from ostate.core.names import is_tuned
from ostate.core.naming import Claim, Question

from ..grouping.refute import Refused, refused
from .diffusers_orders import DIFFUSERS
from .from_keys import claims_of_keys, trained_keys
from .fused_modules import SAID, parted, with_fused
from .key_paths import KeyPath, before_by_number, before_in_module, read_path, tower_of
from .module_orders import BESIDE, FAMILIES, LEADS, ORIGINALS, PLACES
from .transformers_models import orders_by_class

_DIFFUSERS = re.compile(r"[.$](?:to_[qkv]|to_out|add_[qkv]_proj|to_qkv_mlp_proj)[.$]")
_TEXT = re.compile(r"^(?:lora_te\d?|text_encoder(?:_\d)?)$")
RARE = 3
"""Model types of an order for one of another that is not worth a claim beside it."""
_PLACED = frozenset(word for row in PLACES for word in row)


def convention(question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return what the module order of the architecture says, cut by every trainer's rule; nothing where a module is unknown."""
    if question.adapter is None or (question.adapter.kind == "model" and not any(map(is_tuned, question.adapter.tensors))):
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
    found = _orders_by_convention(tuple(keys))
    return found if isinstance(found, str) else [(name, list(order)) for name, order in found]


@lru_cache(maxsize=4)
def _orders_by_convention(keys: tuple[str, ...]) -> list[tuple[str, list[str]]] | str:
    """Return the same: each of many orders that are tried asks for its alternatives, of the same keys."""
    if not keys:
        return "no keys"
    fused, others = parted(keys)
    if fused and others:
        orders = orders_by_convention(others)
        return orders if isinstance(orders, str) else [(name + SAID, with_fused(order, fused)) for name, order in orders]
    paths = {key: read_path(key) for key in keys}
    towers: dict[tuple[str, ...], list[KeyPath]] = {}
    for path in paths.values():
        towers.setdefault(tower_of(path.parts), []).append(path)
    options = {tower: _families(tower, own) for tower, own in towers.items()}
    sides = {bool(_TEXT.match(path.parts[0])) for path in paths.values()}
    found: dict[tuple[str, ...], str] = {}
    unknown = ""
    choices = product(*(known or [KnownFamily("", _Rank(()), {})] for known in options.values())) if any(options.values()) else ()
    for choice in choices:
        spelled = {**paths, **{key: path for family in choice for key, path in family.paths.items()}}
        known = {tower: family.known for tower, family in zip(options, choice)}
        for text_first in (True, False) if len(sides) > 1 else (False,):
            try:
                ordered = in_order(list(spelled.values()), known, text_first=text_first)
            except LookupError as error:
                unknown = unknown or f"no convention orders {error.args[0]}"
                continue
            found.setdefault(tuple(ordered), "module order of " + ", ".join(dict.fromkeys(family.name for family in choice if family.name)))
    by_class = orders_by_class(list(paths.values()))
    for one in by_class:
        if one.types * RARE > by_class[0].types:  # rare models of the same names do not count
            found.setdefault(one.keys, f"module order of transformers' {one.name}")
    return [(name, list(ordered)) for ordered, name in found.items()] or unknown or "the architecture is not in the table of conventions"


class KnownFamily(NamedTuple):
    """A family of models, and the keys of one tower in its words."""

    name: str
    known: KnownOrder
    paths: dict[str, KeyPath]


class KnownOrder(Protocol):
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


def _families(tower: tuple[str, ...], paths: Sequence[KeyPath]) -> list[KnownFamily]:
    """Return the families that one tower's keys look like, one for every order that they give these keys."""
    alike: dict[tuple[str, ...], KnownFamily] = {}
    for name, chains in (*DIFFUSERS.items(), *ORIGINALS.items()):
        words = {word for chain in chains for word in chain.split()}
        spelled = _in_words(tower, paths, words)
        if spelled is not None and all(path.words <= words for path in spelled):
            alike.setdefault(_present(chains, spelled), KnownFamily(name, _Chains(chains), {path.key: path for path in spelled}))
    if not alike and _DIFFUSERS.search("\n".join(path.key for path in paths)):
        for name, chains in DIFFUSERS.items():
            alike.setdefault(_present(chains, paths), KnownFamily(name, _Chains(chains), {}))
    if not alike:
        alike = _of_language(tower, paths)
    if len(alike) < 2:
        return list(alike.values())
    distinct: dict[tuple[str, ...], KnownFamily] = {}
    for family in alike.values():
        with contextlib.suppress(LookupError):
            distinct.setdefault(tuple(in_order(list(family.paths.values()) or paths, {tower: family.known})), family)
    return list(distinct.values())


def _of_language(tower: tuple[str, ...], paths: Sequence[KeyPath]) -> dict[tuple[str, ...], KnownFamily]:
    """Return the families of `FAMILIES` of the first pattern that the keys match."""
    alike: dict[tuple[str, ...], KnownFamily] = {}
    first = None
    for name, pattern, words in FAMILIES:
        spelled = _in_words(tower, paths, _PLACED.union(words))
        if spelled is None or first not in (None, pattern):
            continue
        if first is None and not re.search(pattern, "\n".join(".".join(path.parts) for path in spelled)):
            continue
        first = pattern
        here = {part for path in spelled for part in path.parts}
        alike.setdefault(tuple(word for word in words if word in here), KnownFamily(name, _Rank(words), {path.key: path for path in spelled}))
    return alike


def _present(chains: Sequence[str], paths: Sequence[KeyPath]) -> tuple[str, ...]:
    here = {part for path in paths for part in path.parts}
    kept = (" ".join(word for word in chain.split() if word in here) for chain in chains)
    return tuple(sorted({chain for chain in kept if " " in chain}))


def _in_words(tower: tuple[str, ...], paths: Sequence[KeyPath], words: Collection[str]) -> list[KeyPath] | None:
    """Return the paths with underscored ones divided into these words; None where one cannot be, or in more than one way."""
    if not tower or tower[-1] not in LEADS:
        return list(paths)
    at = len(tower)
    found = []
    for path in paths:
        inner = divided(path.parts[at], words)
        if inner is None:
            return None
        found.append(path._replace(parts=(*path.parts[:at], *inner, *path.parts[at + 1 :])))
    return found


def divided(text: str, words: Collection[str]) -> tuple[str, ...] | None:
    """Return an underscored path in words and numbers, as few as there can be; None where there is no way, or two of that length."""
    tokens = text.split("_")
    best: list[tuple[tuple[str, ...], bool] | None] = [((), True)]
    for end in range(1, len(tokens) + 1):
        ways: list[tuple[tuple[str, ...], bool]] = []
        for start in range(end):
            word = "_".join(tokens[start:end])
            before = best[start]
            if before is not None and (word in words or (end - start == 1 and number_in(word) is not None)):
                ways.append(((*before[0], word), before[1]))
        shortest = min((len(way) for way, _ in ways), default=0)
        least = [way for way in ways if len(way[0]) == shortest]
        best.append((least[0][0], len(least) == 1 and least[0][1]) if least else None)
    last = best[-1]
    return last[0] if last is not None and last[1] else None


def in_order(paths: Sequence[KeyPath], known: Mapping[tuple[str, ...], KnownOrder], *, text_first: bool = False) -> list[str]:
    """Return the keys in the order in which a model defines them.

    Args:
        paths: the keys of the adapter file in parts.
        known: tower (the path of a model within the model; empty: what lies around) -> what its family knows.
        text_first: put a pipeline's text encoders in front of its denoiser.

    Raises:
        LookupError: two modules lie side by side whose order the tables do not know.
    """

    def compare(one: KeyPath, other: KeyPath) -> int:
        left, right = one.parts, other.parts
        for at, (a, b) in enumerate(zip(left, right)):
            if a != b:
                if not at and bool(_TEXT.match(a)) != bool(_TEXT.match(b)):
                    return -1 if bool(_TEXT.match(a)) == text_first else 1
                return _before(a, b, known.get(tower_of(left[:at]), _NOTHING), peft=left[0] == "base_model")
        return len(left) - len(right)

    return [path.key for path in sorted(paths, key=cmp_to_key(compare))]


def _before(one: str, other: str, known: KnownOrder, *, peft: bool) -> int:
    """Return a negative number when `one` is defined before `other`, its sibling."""
    numbers = before_by_number(one, other)
    if numbers is not None:
        return numbers
    listed = known.before(one, other)
    if listed is not None:
        return listed
    within = before_in_module(one, other, peft=peft)
    if within is not None:
        return within
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
