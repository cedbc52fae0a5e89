"""Many names in few words: what names are alike but for their numbers, where every such parameter is meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence


def pattern_of(name: str) -> str:
    """Return the name with `*` in place of each dotted component that is a whole number."""
    return ".".join(["*" if part.isdigit() else part for part in name.split(".")])


def fold(names: Sequence[str], parameters: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the names that stay listed, and patterns in place of the others: each stands for every one of `parameters` that it fits."""
    patterns = {name: pattern_of(name) for name in names}
    meant, all_of = Counter(patterns.values()), Counter(map(pattern_of, parameters))
    whole = {pattern for pattern, count in meant.items() if 1 < count == all_of[pattern]}
    return [name for name in names if patterns[name] not in whole], [pattern for pattern in meant if pattern in whole]


def unfold(names: Sequence[str], patterns: Collection[str], parameters: Iterable[str]) -> tuple[str, ...]:
    """Return all names that `fold` was given: those of `parameters` in their order, then any others."""
    if not patterns:
        return tuple(names)
    listed, wanted = dict.fromkeys(names), set(patterns)
    found = [name for name in parameters if name in listed or pattern_of(name) in wanted]
    return tuple(dict.fromkeys((*found, *listed)))
