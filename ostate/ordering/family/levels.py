"""The levels at which names branch (layers, experts, blocks, siblings within a block), and sequences rearranged block by block at one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from .names import NameParts

Arrange = Callable[[list[str]], list[str]]
"""The components of one run's blocks, in their order -> the same components in another order."""


Pattern = tuple[str, ...]

Place = tuple[Pattern, bool]
"""(path down to a level, True for its numbers and False for its words)."""
Step = tuple[Place, Pattern, str]
"""(place, path down to it, child)."""


class Level(NamedTuple):
    """A place in names where they branch: all rows whose path, numbers left open, begins alike."""

    label: str
    """For people: `layers`, or as much of the path as tells it from other levels."""
    pattern: tuple[str, ...]
    """The path down to here, numbers as `#`."""
    children: tuple[str, ...]
    """What stands here, in order of appearance: all numbers, or all words."""
    members: tuple[tuple[int, str] | None, ...]
    """Row by row: (number of the parent, child); None: the row does not pass here."""

    @property
    def numeric(self) -> bool:
        """True for layers, experts and their like."""
        return self.children[0].isdigit()


def star(path: Sequence[str]) -> tuple[str, ...]:
    """Return the path with every number as `#`."""
    return tuple(["#" if part.isdigit() else part for part in path])


def levels_of(rows: Sequence[NameParts]) -> tuple[Level, ...]:
    """Return every level with at least two children, the outermost first."""
    children: dict[Place, dict[str, None]] = {}
    steps: dict[Pattern, tuple[Step, ...]] = {}
    for path in dict.fromkeys(row.path for row in rows):
        starred = star(path)
        steps[path] = tuple(((starred[:depth], part.isdigit()), path[:depth], part) for depth, part in enumerate(path))
        for place, _, part in steps[path]:
            children.setdefault(place, {})[part] = None
    branching = sorted((place for place, found in children.items() if len(found) > 1), key=lambda place: len(place[0]))
    labels = short_labels([pattern for pattern, _ in branching])
    return tuple(Level(labels[place[0]], place[0], tuple(children[place]), _members(rows, steps, place)) for place in branching)


def _members(rows: Sequence[NameParts], steps: Mapping[Pattern, Sequence[Step]], place: Place) -> tuple[tuple[int, str] | None, ...]:
    depth = len(place[0])
    parents: dict[Pattern, int] = {}
    of_path = {
        path: (parents.setdefault(own[depth][1], len(parents)), own[depth][2]) if len(own) > depth and own[depth][0] == place else None
        for path, own in steps.items()
    }
    return tuple([of_path[row.path] for row in rows])


def short_labels(patterns: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Return for each pattern its shortest ending that no other has, numbers at its end left away."""
    distinct = list(dict.fromkeys(patterns))
    labels = {}
    for pattern in distinct:
        for length in range(1, len(pattern) + 1):
            end = pattern[-length:]
            if end[0] != "#" and sum(other[-length:] == end for other in distinct) == 1:
                break
        else:
            end = pattern
        labels[pattern] = ".".join(end) or "the whole"
    return labels


def rearranged(order: Sequence[int], slots: Sequence[int], level: Level, arrange: Arrange) -> list[int]:
    """Return the arrangement with the blocks of one level reordered, run by run.

    A run is a stretch of `slots` under one parent in which every child stands once, its rows together. Rows that do not have the level end it.

    Args:
        order: the arrangement to start from: slot i holds row `order[i]`.
        slots: the slots that take part, ascending; the others keep their rows.
        level: whose blocks.
        arrange: says how the blocks of one run are to stand.
    """
    new: list[int] = []
    for run in _runs([order[slot] for slot in slots], level.members):
        for child in arrange(list(run)) if len(run) > 1 else run:
            new += run[child]
    if len(slots) == len(order):
        return new
    out = list(order)
    for slot, row in zip(slots, new):
        out[slot] = row
    return out


def _runs(sequence: Sequence[int], members: Sequence[tuple[int, str] | None]) -> list[dict[str, list[int]]]:
    """Cut a sequence of rows into runs: child -> its rows. Rows without the level are a run of one block each."""
    runs: list[dict[str, list[int]]] = []
    run: dict[str, list[int]] = {}
    block: list[int] = []
    last: tuple[int, str] | None = None
    for index in sequence:
        member = members[index]
        if member is None:
            runs.append({"": [index]})
        elif member == last:
            block.append(index)
        else:
            if last is None or member[0] != last[0] or member[1] in run:
                run = {}
                runs.append(run)
            block = run[member[1]] = [index]
        last = member
    return runs
