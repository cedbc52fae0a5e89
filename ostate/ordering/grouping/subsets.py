"""A model of which only a part was trained: which of its parameters the optimizer's positions are.

Freezing takes parameters out of a rule's groups and leaves the others in their order. So a group's positions are a subsequence of the rule's own
group, of the same shapes. Often several are: the last two layers have the shapes of the first two. What moved since the start (`Question.moved`)
has to be among them, what did not move cannot be. Only where a single choice is left is it an order; several are a question for the numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise, product
from typing import NamedTuple

from ostate.core.names import is_tuned
from ostate.core.naming import Moved, Question
from ostate.core.state import Entry

from .cuts import GroupCut, same_rates
from .parameters import Parameter, ParameterList
from .refute import fits, positions_of, refute_groups
from .rules import RULES, Rule, cuts_alike

MOST_CHOICES = 16
"""Choices of what was trained that are worth asking the numbers about."""
NOTHING_KNOWN = Moved()

Choice = tuple[tuple[int, Parameter | None], ...]
"""(position, parameter) of every position; None for one without state that several may be."""


class Choices(NamedTuple):
    """What the positions may be, and by which rules of grouping."""

    found: dict[Choice, list[Rule]]
    reason: str
    """Why there is none, or too many to name."""


def part_of(layout: ParameterList, question: Question) -> ParameterList | None:
    """Return the layout as if all its parameters could have been trained, where the optimizer may hold a part of them; else None.

    Under an adapter those are parameters that were unfrozen beside it.
    """
    count = len(positions_of(question.raw))
    trainable = sum(row.trainable for row in layout.parameters)
    if count == trainable or count >= len(layout.parameters):
        return None
    if count < trainable and question.adapter is not None and question.adapter.kind == "model":
        rule = f"{layout.rule}, {count} of its {trainable} parameters trained"
        return replace(layout, rule=rule, parameters=tuple(row for row in layout.parameters if row.trainable))
    if trainable < count:
        rule = f"{layout.rule}, {count - trainable} of its own parameters trained beside the adapter"
        return replace(layout, rule=rule, parameters=tuple(replace(row, trainable=True) for row in layout.parameters))
    return None


def choices_of(layout: ParameterList, question: Question) -> Choices:
    """Return every choice of trained parameters that some rule of grouping, the shapes and what moved leave.

    Args:
        layout: as it would be trained whole; the parameters that an adapter trains in any case are the trainable ones of another layout.
        question: the state, and what moved.
    """
    known = question.moved or NOTHING_KNOWN
    found = _under(layout, question, known)
    if not found.found and known.unmoved and not known.moved:  # nothing moved: started from here, or trained in 16 bits and saved in 32
        found = _under(layout, question, known._replace(unmoved=frozenset()))
    return found


def beside_adapter(layout: ParameterList, whole: ParameterList, question: Question) -> Choices:
    """Return the choices that hold all of the adapter's parameters, and all others of each shape that they hold more of than the adapter has.

    A choice among parameters of one shape would rest on the order in which a program put them behind the adapter's.
    """
    of_adapter = frozenset(row.name for row in layout.parameters if row.trainable)
    own = Counter(row.shape for row in layout.parameters if row.trainable)
    of_model = [row for row in layout.parameters if not row.trainable and not is_tuned(row.name)]  # no other adapter's
    other = Counter(row.shape for row in of_model)
    there = Counter(entry.shape for entry in question.raw.entries if entry.shape is not None)
    extra = {shape: count - own[shape] for shape, count in there.items() if count != own[shape]}
    if any(count != other[shape] for shape, count in extra.items()):
        return Choices({}, "the model has more parameters of these shapes than were trained beside the adapter")
    taken = of_adapter | {row.name for row in of_model if row.shape in extra}
    part = replace(whole, parameters=tuple(row for row in whole.parameters if row.name in taken))
    return _under(part, question, NOTHING_KNOWN)


def _under(layout: ParameterList, question: Question, known: Moved) -> Choices:
    raw = question.raw
    sizes = [len(group.positions) for group in raw.groups]
    present = frozenset[str]().union(*{row.classes for row in layout.parameters})
    tried: dict[tuple[object, ...], list[Choice]] = {}
    found: dict[Choice, list[Rule]] = {}
    reason = "the model's parameters do not have the shapes of the positions in this order"
    if len(known.moved) > len(raw.entries):
        reason = (
            f"{len(known.moved)} of its tensors differ from where they started, and the optimizer holds {len(raw.entries)}: "
            "another base model, or blocks trained in turn (then --previous DIR, a save of the same block, tells which)?"
        )
    for rule in RULES:
        if rule.guess or (rule.groups is not None and rule.groups != len(sizes)):
            continue
        alike = cuts_alike(rule, present)
        if alike not in tried:
            tried[alike] = list(islice(_laid(rule, layout, question, known, sizes), MOST_CHOICES + 1))
        for choice in tried[alike]:
            found.setdefault(choice, []).append(rule)
    if len(found) > MOST_CHOICES:
        several = f"more than {MOST_CHOICES} choices of what was trained have the shapes of the positions"
        return Choices({}, f"{several}; --base or --previous with weights tells them apart: what did not move was not trained")
    return Choices(found, reason)


def _laid(rule: Rule, layout: ParameterList, question: Question, known: Moved, sizes: Sequence[int]) -> Iterator[Choice]:
    """Yield the choices under one rule."""
    raw = question.raw
    for cuts in rule.split(layout.parameters, sizes):
        no_decay = [index for index, cut in enumerate(cuts) if not cut.decays]
        if len(cuts) != len(sizes) or refute_groups(raw, sizes, no_decay, same_rates(cuts)):
            continue
        ways = [_ways([raw.entries[p] for p in group.positions], cut, known) for group, cut in zip(raw.groups, cuts)]
        for chosen in product(*ways):
            yield tuple(pair for own in chosen for pair in own)


def _ways(entries: Sequence[Entry], cut: GroupCut, known: Moved) -> list[Choice]:
    """Return at most `MOST_CHOICES` + 1 ways to take as many of the group's parameters as it has positions, in their order.

    Positions without state have no shape: one way of taking them is enough to go on, and they get a parameter only where no other could be there.
    """
    rows = cut.parameters
    must = [row.key in known.moved for row in rows]
    able = [_able(entry, rows, must, known) for entry in entries]
    reach = _reachable(able, must)
    found: list[Choice] = []
    todo: list[tuple[int, ...]] = [()] if reach[0][0] else []
    while todo and len(found) <= MOST_CHOICES:
        taken = todo.pop()
        at, start = len(taken), taken[-1] + 1 if taken else 0
        if at == len(entries):
            found.append(_as_choice(entries, taken, rows))
            continue
        for index in range(start, len(rows)):
            if able[at][index] and reach[at + 1][index + 1]:
                todo.append((*taken, index))
                if not entries[at].has_state:
                    break
            if must[index]:
                break
    return found


def _as_choice(entries: Sequence[Entry], taken: Sequence[int], rows: Sequence[Parameter]) -> Choice:
    """Return the parameters of the positions; of those without state only where they fill all there is between their neighbours with state."""
    stated = [-1, *(at for at, entry in enumerate(entries) if entry.has_state), len(entries)]
    index_of = [*taken, len(rows), -1]  # -1 is the place before the first
    found: list[tuple[int, Parameter | None]] = []
    for before, after in pairwise(stated):
        filled = index_of[after] - index_of[before] == after - before
        found += [(entries[at].position, rows[taken[at]] if filled else None) for at in range(before + 1, after)]
        if after < len(entries):
            found.append((entries[after].position, rows[taken[after]]))
    return tuple(found)


def _able(entry: Entry, rows: Sequence[Parameter], must: Sequence[bool], known: Moved) -> list[bool]:
    """Tell of each parameter whether a position may be it: of the same shape, moved where the state says that it was stepped."""
    if not entry.has_state:
        return [not moved for moved in must]
    stepped = entry.position not in known.still
    return [(row.shape is None or fits(entry, row.shape)) and not (stepped and row.key in known.unmoved) for row in rows]


def _reachable(able: Sequence[Sequence[bool]], must: Sequence[bool]) -> list[list[bool]]:
    """Return [position][parameter]: whether the positions from here on can be laid over the parameters from there on, none that must be left out."""
    count = len(must)
    last = [False] * (count + 1)
    last[count] = True
    for index in range(count - 1, -1, -1):
        last[index] = last[index + 1] and not must[index]
    reach = [last]
    for own in reversed(able):
        here = [False] * (count + 1)
        for index in range(count - 1, -1, -1):
            here[index] = (own[index] and last[index + 1]) or (here[index + 1] and not must[index])
        reach.append(here)
        last = here
    return reach[::-1]
