"""The order of keys by what transformers' own classes define: every model type that has all their modules, at the same places."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from functools import cmp_to_key
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import TypeAlias

from ostate.core.foreign import number_in

from .key_paths import KeyPath, before_by_number, before_in_module
from .transformers_orders import TRANSFORMERS

Tree: TypeAlias = "dict[str, Tree]"
"""A module's own -> what each of them holds, in the order of definition; `#` is every number of a list."""
MOST_ORDERS = 4
"""Orders of one set of keys that are worth asking the numbers about: those of the most model types."""
MOST_NAMED = 3
_WORD = re.compile(r"[()]|[^\s()]+")
_MARK = re.compile(r"@\d+")


def rows() -> dict[str, str]:
    """Return the model types of a row, or its mark -> its modules as text, marks still in it."""
    found: dict[str, str] = {}
    for line in TRANSFORMERS.strip().replace("\n ", " ").splitlines():
        name, _, text = line.partition(": ")
        found[name] = text
    return found


def tree_of(name: str, texts: dict[str, str]) -> Tree:
    """Return the tree of a row."""
    text = texts[name]
    while _MARK.search(text):
        text = _MARK.sub(lambda mark: texts[mark[0]], text)
    tree: Tree = {}
    open_nodes, last = [tree], tree
    for word in _WORD.findall(text):
        if word == "(":
            open_nodes.append(last)
        elif word == ")":
            open_nodes.pop()
        else:
            last = open_nodes[-1].setdefault(word, {})
    return tree


class ClassOrder(NamedTuple):
    """One order of keys."""

    keys: tuple[str, ...]
    name: str
    """Some of the model types that have it."""
    types: int
    """How many of them there are."""


def orders_by_class(paths: Sequence[KeyPath]) -> list[ClassOrder]:
    """Return every order that transformers' model types give these keys, the one that most of them give first.

    Of the types only those count that have the modules at their very places, where there are any; else in their base model, or under one or two
    modules of somebody's own.

    Args:
        paths: the keys in parts.
    """
    texts = rows()
    modules = {_general(path) for path in paths}
    places: dict[tuple[int, int], list[tuple[str, Tree]]] = {}
    for name in texts:
        start = next(_starts(tree_of(name, texts), modules), None) if not name.startswith("@") else None
        if start is not None:
            places.setdefault((start.cut, start.depth), []).append((name, start.node))
    found: dict[tuple[str, ...], list[str]] = {}
    for cut, depth in sorted(places)[:1]:
        for name, node in places[cut, depth]:
            with contextlib.suppress(LookupError):
                found.setdefault(tuple(in_order(paths, node, cut)), []).extend(name.split())
    ranked = sorted(found.items(), key=lambda row: -len(row[1]))[:MOST_ORDERS]
    return [ClassOrder(keys, ", ".join(names[:MOST_NAMED]) + (" …" if len(names) > MOST_NAMED else ""), len(names)) for keys, names in ranked]


class _TreeStart(NamedTuple):
    cut: int
    """Parts of the paths to leave out."""
    depth: int
    node: Tree
    """Where the rest of the paths begins, so deep in the class."""


def _general(path: KeyPath) -> tuple[str, ...]:
    """Return the path of the key's module within the model, `#` for numbers."""
    parts = path.parts[: len(path.parts) - path.inner]
    if parts[:2] == ("base_model", "model"):
        parts = parts[2:]
    return tuple("#" if number_in(part) is not None else part for part in parts)


def _starts(tree: Tree, modules: set[tuple[str, ...]]) -> Iterator[_TreeStart]:
    """Yield the places in the tree that hold all modules, the surest first."""
    nodes = [(0, tree), *((1, node) for node in tree.values() if node)]
    for cut in range(3):
        if len({module[:cut] for module in modules}) > 1:
            return
        for depth, node in nodes:
            if all(_holds(node, module[cut:]) for module in modules):
                yield _TreeStart(cut, depth, node)


def _holds(node: Tree, module: tuple[str, ...]) -> bool:
    if not module:
        return False
    for part in module:
        if part not in node:
            return False
        node = node[part]
    return True


def in_order(paths: Sequence[KeyPath], tree: Tree, cut: int) -> list[str]:
    """Return the keys in the order of the tree; a module's own tensors stand before those of the modules in it.

    Raises:
        LookupError: two tensors of one module whose order is not known.
    """

    def compare(one: KeyPath, other: KeyPath) -> int:
        peft = one.parts[:2] == ("base_model", "model")
        ends = [len(path.parts) - path.inner for path in (one, other)]
        node = tree
        for at, (a, b) in enumerate(zip(one.parts, other.parts)):
            if a == b:
                if cut + 2 * peft <= at < ends[0]:
                    node = node["#" if number_in(a) is not None else a]
                continue
            own = [at >= end for end in ends]
            if own[0] != own[1]:
                return -1 if own[0] else 1
            known = before_by_number(a, b)
            if known is None:
                known = before_in_module(a, b, peft=peft) if own[0] else _before_in(node, a, b)
            if known is None:
                raise LookupError(f"{a!r} and {b!r}")
            return known
        return len(one.parts) - len(other.parts)

    return [path.key for path in sorted(paths, key=cmp_to_key(compare))]


def _before_in(node: Tree, one: str, other: str) -> int:
    order = list(node)
    places = [order.index("#" if number_in(part) is not None else part) for part in (one, other)]
    return places[0] - places[1]
