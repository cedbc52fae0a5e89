"""Which rows a program may have put in an order of their own: all, one group, one factor, one factor of one group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from .sequence import ClaimRows

MOST_GROUPS = 8
"""Groups that are taken one by one; an optimizer of more has one for each layer or parameter, where nothing is left to rearrange within."""


def selections(sequence: ClaimRows, *, each_group: bool = True, each_factor: bool = True) -> Iterator[tuple[str, list[list[int]]]]:
    """Yield (words to add, lists of slots that are rearranged each by itself); the first is everything at once, with nothing to add.

    One group, or one factor, is in an order of its own only where a person made the groups: a loop over `named_parameters` cuts them all alike.
    """
    by_hand = sequence.claim.by_hand
    each_group, each_factor = each_group and by_hand, each_factor and by_hand
    everything = list(range(len(sequence.rows)))
    yield "", [everything]
    if len(sequence.groups) > 1:
        yield ", group by group", [list(group) for group in sequence.groups]
    groups = list(zip(sequence.group_numbers, sequence.groups)) if each_group and 1 < len(sequence.groups) <= MOST_GROUPS else []
    for number, group in groups:
        yield f", in group {number} alone", [list(group)]
    for factor in _apart(sequence) if each_factor else []:
        of_factor = {slot for slot in everything if sequence.rows[slot].factor == factor}
        yield f", of {factor} alone", [sorted(of_factor)]
        for number, group in groups:
            both = [slot for slot in group if slot in of_factor]
            if 0 < len(both) < min(len(of_factor), len(group)):
                yield f", of {factor} in group {number} alone", [both]


def _apart(sequence: ClaimRows) -> list[str]:
    """Return the factors that stand together in every group, so that a program may have listed them by themselves."""
    stretches: Counter[tuple[str, int]] = Counter()
    for at, group in enumerate(sequence.groups):
        stretches.update((factor, at) for factor, _ in groupby(sequence.rows[slot].factor for slot in group))
    factors = dict.fromkeys(factor for factor, _ in stretches)
    mixed = {factor for (factor, _), count in stretches.items() if count > 1}
    return [factor for factor in factors if factor not in mixed] if len(factors) > 1 else []
