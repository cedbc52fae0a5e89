"""Which other orders the numbers reject, and with how many digits: an order proven as a whole, from the ranks of its modules.

Under another order the modules that it moves stand in gauges that are uniformly random relative to their claimed ones (`gauge`). The evidence
against it is one e-value over those of them whose gauges are independent (`independent`, `combine`): a chance of at most 1 / E.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ostate.evidence import combine
from ostate.evidence.gauge import Ranked
from ostate.evidence.looks import How, Looks, Place, places_of
from ostate.evidence.starts import independent_starts
from ostate.evidence.units import Unit

if TYPE_CHECKING:
    from ostate.core.family import Exchangeable, Family

MOST_CHANCE = 1e-6
"""Chances of all other orders together below which an order is verified."""
ENUMERATED = 5
"""Kinds up to which each of their orders is weighed by itself."""
EVERYTHING = "another run's state, or names at random"
ANOTHER_ORDER = "the factors that start at random in another order than those that start at zero"
BALANCE_MOST, BALANCE_LEAST = 10.0, 2.5
"""Digits that the balance of all modules may have, from which it is missed; digits from which it is not: in another order one in three hundred has
more. Healthy ones of rank 3 have 7 at step 2, of rank 2 beside GraLoRA's blocks 2.9 at step 16."""
BALANCE_MUCH = 40.0
"""Digits that the balance of half the modules may have, from which another order of one factor is weighed as the family's orders are: healthy runs
have a quarter of it or more from step 2 on (rank 2, steps 2 to 12)."""
_NUMBER = re.compile(r"\d+")
Keys = Sequence[str | None]


@dataclass(frozen=True, slots=True)
class Weighed:
    """One other order and the evidence against it."""

    what: str
    digits: float
    """The numbers look as they do with a chance of at most 10^-digits if this were the true order."""
    moved: frozenset[int]
    """Positions with state that it names otherwise."""


def factor_index(looks: Looks) -> dict[str, int]:
    """Return the module of each factor's key."""
    return {key: index for index, module in enumerate(looks.modules) for key in (module.zero, module.other) if key}


def weigh_all(
    claimed: Keys, names: Keys, family: Family, looks: Looks, single: Mapping[int, float], stated: Sequence[int], signs: frozenset[int] = frozenset()
) -> list[Weighed]:
    """Return the evidence against each other order of the family, and against numbers that belong to none of these names.

    Args:
        claimed: adapter key by position.
        names: live name by position.
        family: what a program could have made instead.
        looks: at the modules.
        single: log10 e-values of positions outside the modules, such as those whose master weights equal the adapter's.
        stated: positions with state.
        signs: those of `single` that rest on signs of their own, which a tensor of the same layer, or another one outside the layers, may share.
    """
    places = places_of(claimed, looks.modules, stated)
    index = factor_index(looks)
    found = [Weighed(EVERYTHING, _digits(_everything(places, looks), list(single.values())), frozenset(stated))]
    found += _one_factor(places, looks)
    for other in family.alternatives:
        moved = [p for p in stated if other.keys[p] != claimed[p] or (claimed[p] is None and other.names[p] != names[p])]
        if moved:
            usable = {p: digits for p, digits in single.items() if p not in signs or _layer(claimed[p]) != _layer(other.keys[p])}
            found.append(Weighed(other.what, against(other.keys, set(moved), places, index, looks, usable), frozenset(moved)))
    if family.cut:  # what was not looked at cannot be rejected
        found.append(Weighed(f"{family.cut} more orders, too many to test", 0.0, frozenset(stated)))
    at = {key: position for position in stated if (key := claimed[position]) is not None}
    for group in family.exchangeable:
        found += _exchanged(group, places, index, looks, at)
    return found


def _layer(key: str | None) -> str | None:
    """Return a key's path down to its last number: its layer; empty for what lies outside them, such as embeddings and heads."""
    if key is None:
        return None
    found = re.match(r"(?:.*\.)?\d+(?=\.)", key)
    return found[0] if found else ""


def _everything(places: Sequence[Place], looks: Looks) -> list[Ranked]:
    """Return the ranks of the first module of each start; of none where all have one: it is the same gauge whosever moments they are."""
    starts = looks.starts(places)
    first = [place for place in places if _known(place) and starts[place.module] == place.module]
    if len(first) == 1 and len(places) > 1:
        return []
    return [each for ranked in looks.ranked(first, "whole") for each in ranked]


def _one_factor(places: Sequence[Place], looks: Looks) -> list[Weighed]:
    """Return "the factors that start at random are in another order of layers than those that start at zero", where balance leaves that open.

    Where the layers of one factor stand reversed, or each one place off, neither half of a kind's layers holds a whole cycle: those ranks of the
    other factor are independent, and where they may say much they are weighed as any order's, by the better half. No program makes such an order, so
    that of fewer, which say little early in a healthy run, it is enough that balance holds better than by chance. Nothing is asked of what had no
    gradient yet.
    """
    pairs = [place for place in places if place.zero is not None and place.other is not None and looks.modules[place.module].balanced]
    both = [place for place, plain in zip(pairs, looks.plain(pairs)) if np.isfinite(plain.residual)]
    starts, kinds = looks.starts(places), dict[str, list[Place]]()
    for place in sorted(both, key=lambda place: _numbers(looks, place)):
        if starts[place.module] == place.module:
            kinds.setdefault(_NUMBER.sub("#", looks.modules[place.module].prefix), []).append(place)
    first, last = ([place for kind in kinds.values() for place in _half(kind, last=last)] for last in (False, True))
    halves = [[one for each in looks.ranked(half, "other") for one in each] for half in (first, last)]
    moved = frozenset(place.other for place in both if place.other is not None)
    if _most_digits(halves[0]) >= BALANCE_MUCH:
        return [Weighed(ANOTHER_ORDER, max(0.0, max(combine.digits(half) for half in halves) - math.log10(len(halves))), moved)]
    ranked = [one for each in looks.ranked(both, "other") for one in each]
    if _most_digits(ranked) < BALANCE_MOST or (digits := combine.digits(ranked)) >= BALANCE_LEAST:
        return []
    return [Weighed(ANOTHER_ORDER, digits, moved)]


def _half(kind: Sequence[Place], *, last: bool) -> Sequence[Place]:
    size = len(kind) // 2
    return kind[len(kind) - size :] if last else kind[:size]


def _most_digits(ranked: Sequence[Ranked]) -> float:
    return sum(math.log10(one.size) for one in ranked)


def _numbers(looks: Looks, place: Place) -> list[int]:
    """Return the numbers in a module's path: its layer first."""
    return [int(number) for number in _NUMBER.findall(looks.modules[place.module].prefix)]


def _known(place: Place) -> bool:
    return place.zero is not None or place.other is not None


def against(other: Keys, moved: set[int], places: Sequence[Place], index: Mapping[str, int], looks: Looks, single: Mapping[int, float]) -> float:
    """Return the digits against one other order: an e-value over the modules it moves, one of each cycle left out."""
    how: list[How | None] = []
    sources: list[list[int | None]] = []
    turned: dict[int, tuple[bool, bool]] = {}
    half: dict[int, tuple[bool, bool]] = {}
    for place in places:
        if place.zero not in moved and place.other not in moved:
            how.append(None)
            sources.append([])
            continue
        origins = {factor: other[p] for factor, p in (("zero", place.zero), ("other", place.other)) if p is not None and p in moved}
        theirs = [index.get(key or "") for key in origins.values()]
        unit = looks.modules[place.module]
        kind = _kind(place, moved) if place.module not in theirs else None
        if kind is not None and unit.group == "neurons":
            kind, theirs = _of_neurons(kind, unit, origins, index)
        own = origins.get("zero") == unit.other, origins.get("other") == unit.zero
        if len(origins) == 2 and any(own):
            lent = [module for mine, module in zip(own, theirs) if not mine and module is not None]
            if not lent:
                turned[place.module] = own
            elif place.module not in lent:  # its own gauge turns one factor's moments, another module's the other's
                half[place.module] = own
                kind, theirs = "zero", list(lent)
        how.append(kind)
        sources.append(theirs)
    starts = looks.starts(places)
    kept = independent_starts(how, sources, starts)
    ranked: list[Ranked] = [each for i in kept if i in half for each in looks.exchanged(places[i], half[i])]
    for kind in ("whole", "zero", "other"):
        chosen = [places[i] for i in kept if how[i] == kind and i not in half]
        ranked += [each for found in looks.ranked(chosen, kind) for each in found]  # type: ignore[arg-type]
    spoken = {starts[i] for i in kept}
    for i, own in turned.items():  # its rank depends on no other module's gauge
        if starts[i] not in spoken:
            spoken.add(starts[i])
            ranked += looks.exchanged(places[i], own)
    return _digits(ranked, [single[p] for p in moved if p in single])


def _of_neurons(kind: How, unit: Unit, origins: Mapping[str, str | None], index: Mapping[str, int]) -> tuple[How | None, list[int | None]]:
    """Return what may be asked of a block's neurons where another layer of the block lends its moments: a gate has their order."""
    near = {factor for factor, key in origins.items() if unit.of_its_block(key or "")}
    if "zero" in near or (kind == "whole" and near and "zero" not in origins):
        return None, []
    if kind == "whole" and near:
        return "zero", [index.get(origins["zero"] or "")]
    return kind, [index.get(key or "") for key in origins.values()]


def _kind(place: Place, moved: set[int]) -> How | None:
    zero, rest = place.zero in moved, place.other in moved
    if (zero and (rest or place.other is None)) or (rest and place.zero is None):
        return "whole"
    return "zero" if zero else "other" if rest else None


def _digits(ranked: Sequence[Ranked], single: Sequence[float]) -> float:
    """Return the digits of ranks, and of e-values (log10) that may depend on each other, so that their mean is taken; half a chance for either."""
    parts = ([combine.digits(ranked)] if ranked else []) + ([combine.log_mean(np.array(single))] if single else [])
    return max(0.0, max(parts) - math.log10(len(parts))) if parts else 0.0


def _exchanged(group: Exchangeable, places: Sequence[Place], index: Mapping[str, int], looks: Looks, at: Mapping[str, int]) -> list[Weighed]:
    """Return the evidence against all exchanges of whole kinds, as one, which moves all tensors of their modules; the weakest two name it.

    Exchanges among kinds that nothing is asked of are apart from the others, since they leave the rest in place.

    Args:
        group: kinds that may stand in each other's place.
        places: by module.
        index: module of each factor's key.
        looks: at the modules.
        at: position of each key that has state.
    """
    moved = [frozenset(at[key] for module in kind for key in module if key in at) for kind in group.modules]
    members = [[places[unit] for module in kind for unit in dict.fromkeys(index[key] for key in module if key in index)] for kind in group.modules]
    chosen = [[place for place in kind if _known(place)] for kind in _one_of_each_start(members, looks.starts(places))]
    ranked = [[each for found in looks.ranked(kind, "whole") for each in found] for kind in chosen]
    ranked_kinds = sorted((i for i, kind in enumerate(ranked) if kind), key=lambda i: combine.digits(ranked[i]))
    silent = [i for i, kind in enumerate(ranked) if not kind]
    found = []
    if ranked_kinds:
        first, second = (*silent[:1], *ranked_kinds)[:2]
        found.append(Weighed(_pair_text(group, first, second), max(0.0, -_log_chance(ranked)), frozenset().union(*moved)))
    if len(silent) > 1:
        found.append(Weighed(_pair_text(group, silent[0], silent[1]), 0.0, frozenset().union(*(moved[i] for i in silent))))
    return [each for each in found if each.moved]


def _pair_text(group: Exchangeable, one: int, two: int) -> str:
    return f"{group.kinds[one]} and {group.kinds[two]} exchanged in every layer"


def _log_chance(ranked: Sequence[Sequence[Ranked]]) -> float:
    """Return log10 of the sum of the chances of all orders of the kinds that move one of which something is asked."""
    if len(ranked) <= ENUMERATED:
        return _enumerated(ranked)
    log_evalues = [combine.log_mean(combine.log_evalues(kind)) for kind in ranked if kind]
    return combine.permutations_bound(log_evalues, mute=len(ranked) - len(log_evalues))


def _one_of_each_start(members: Sequence[Sequence[Place]], starts: Sequence[int]) -> Iterator[list[Place]]:
    """Yield of each kind the first module of every start that no other kind has: exchanged kinds of one start would have no gauge between them."""
    kinds_of: dict[int, set[int]] = {}
    for number, kind in enumerate(members):
        for place in kind:
            kinds_of.setdefault(starts[place.module], set()).add(number)
    for kind in members:
        first = {starts[place.module]: place for place in reversed(kind) if len(kinds_of[starts[place.module]]) == 1}
        yield [place for place in kind if first.get(starts[place.module]) == place]


def _enumerated(ranked: Sequence[Sequence[Ranked]]) -> float:
    """Return log10 of the sum of the chances of all orders of the kinds but the claimed one, and those that move none of which something is asked.

    Of each cycle one kind must be left out, whichever: the best choice counts, at its chance times the number of choices.
    """
    digits = lru_cache(None)(lambda kept: combine.digits([each for kind in sorted(kept) for each in ranked[kind]]))
    total = 0.0
    for permutation in itertools.permutations(range(len(ranked))):
        cycles = [cycle for cycle in _cycles(permutation) if len(cycle) > 1]
        if any(ranked[kind] for cycle in cycles for kind in cycle):
            choices = [frozenset(kind for cycle in cycles for kind in cycle).difference(left) for left in itertools.product(*cycles)]
            total += min(1.0, len(choices) * 10.0 ** -max(digits(kept) for kept in choices))
    return float(np.log10(total)) if total > 0 else -np.inf


def _cycles(permutation: Sequence[int]) -> Iterator[list[int]]:
    seen: set[int] = set()
    for start in range(len(permutation)):
        cycle, at = [], start
        while at not in seen:
            seen.add(at)
            cycle.append(at)
            at = permutation[at]
        if cycle:
            yield cycle


def rejected(weighed: Sequence[Weighed], *, tries: int = 1) -> tuple[list[Weighed], float]:
    """Return the orders that the numbers leave open, and the sum of the chances of those they reject.

    The surest are rejected first, as long as their chances together stay within MOST_CHANCE / tries: of several orders tried, each pays.
    """
    spent, left = 0.0, list[Weighed]()
    for each in sorted(weighed, key=lambda each: -each.digits):
        chance = 10.0**-each.digits
        if not left and spent + chance <= MOST_CHANCE / tries:
            spent += chance
        else:
            left.append(each)
    return left, spent


def alone(places: Sequence[Place], looks: Looks, single: Mapping[int, float]) -> dict[int, float]:
    """Return by position the digits that its own numbers say of its name, whatever the others are."""
    found = dict(single)
    whole = looks.ranked(places, "whole")
    for how in ("zero", "other"):
        tested = looks.ranked(places, how)
        for place, one, both in zip(places, tested, whole):
            position = place.zero if how == "zero" else place.other
            if position is not None:
                found[position] = max(found.get(position, 0.0), min(combine.digits(one), combine.digits(both)))
    return found


def within(digits: Mapping[int, float]) -> frozenset[int]:
    """Return the positions, surest first, whose chances of being wrong sum to MOST_CHANCE at most."""
    spent, taken = 0.0, set()
    for position in sorted(digits, key=lambda position: -digits[position]):
        spent += 10.0 ** -digits[position]
        if spent > MOST_CHANCE:
            break
        taken.add(position)
    return frozenset(taken)
