"""Modules that stand apart from their siblings: exchanged by hand, damaged, or never trained. This refuses; it proves nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ostate.evidence import combine
from ostate.evidence.gauge import Ranked
from ostate.evidence.looks import How, Looks, Place
from ostate.evidence.misaligned import balance_digits, in_place, in_their_own_moments, misaligned
from ostate.evidence.shares import BULK, by_shape, elements, is_tail, of_another_run, reached_by, share
from ostate.evidence.statistics import median, quantile

FLOOR = 0.9
"""Share of a group's digits from which a module's gauge is its own: the first of all or nearly so."""
STRONG = 0.75
"""Share that nine in ten siblings must reach before one that does not says something by standing apart."""
NOWHERE = 0.25
"""Share below which one module is suspect by itself: a quarter of all gauges and more fit as well."""
OWN = 0.6
"""Mean share that a kind in its own gauges reaches: .65 and more in 140 healthy kinds of ranks 2 to 8, at steps 2 to 20."""
FEW, FEWER = 6, 3
"""Modules of one kind from which their mean share is looked at, where a group is too small to tell of one of them; and where it is not."""
UNRELATED = 0.5
"""Residual of balance above which factors look unrelated; measured .7, and less than .35 in the middle of every healthy file."""
UNFIT = 0.35
"""Mean share of a kind's other factors below which their moments are as good as another's: unrelated ones reach .17, healthy ones .5 at step 2."""
RELATED = 0.3
MISSED, BARELY = 5.0, 2.0
"""Digits that the balance of a kind's other factors may have, from which it is missed; digits below which it is: in another order one in a hundred
has more. Where it may have twice as many one more digit is asked for."""
SEEN, CLOSE, LOST = 4.0, 0.4, 0.6
"""Digits and middle residual of a kind that balances, and middle residual of one that does not. Two of 200 healthy runs, at steps 2 to 10 of ranks 2
and 4, have both."""
ENOUGH = 48
"""Elements of a module's group from which one that looks like any other, or a residual that does, says something by itself: rank 3 and more."""
RANDOM = 1.5
"""Digits below which all but one in thirty random tensors are."""
NEXT_TO_NOTHING, MUCH = 0.5, 4.0
"""Digits of a single tensor that is suspect by itself, where the middle one of its kind has so many."""
BETTER = 1.5
"""Digits by which another place must fit better, that of the search paid, for a tensor to be suspect at its own."""
MOST_WEAK = 64
"""Weak tensors of one shape that are tried at each other's place."""
TEN, EXCHANGED = 10, 2
"""Up to ten modules half of them may say less than the rest; of more, one in ten, or the two of an exchanged pair."""
FEWEST = 4
"""Modules of one shape from which they are compared among themselves."""
MOST = 0.4
"""Share of modules beyond which moments without a weight that moved mean that nothing was updated yet."""
WEAKEST = 24
"""Modules of one shape, those whose gauges say least, that are tried in each other's places, half of them against all: 420 looks at most."""
TRIED = 1 << 26
"""Weights that are read for this, or all of these modules once more where that is more."""
SURE = 2.0
"""Digits, beyond those of the places tried, from which a module fits another's place: one healthy file in a hundred, at most, is warned of."""
SURER = 3.0
"""Digits, beyond those of the pairs tried, from which one factor of a kind fits another kind's places: nobody's order does that but by hand."""
LAYERS = 8
"""Layers in which that is tried."""
FACTORS: tuple[How, ...] = ("zero", "other")
TWICE, FAR = 2.0, 8.0
"""How many times smaller the residual of balance is at another's place: of either of a pair, and where one look or a small group must say it."""
FURTHER = 0.3
"""Cosine by which an exchanged pair lies further along each other's last updates, half of it either at least: two modules' gauges differ, so that
where nothing was exchanged it is near zero."""


class Apart(NamedTuple):
    """The modules whose own numbers contradict their names, and those that were never trained."""

    against: tuple[int, ...]
    """Modules whose own numbers contradict their place."""
    untrained: tuple[int, ...]
    """Modules whose moments and zero factor are all zero: never trained, and nothing to tell by."""


def apart(places: Sequence[Place], looks: Looks) -> Apart:
    """Return the modules that fit their places much worse than the other modules of their shape do."""
    known = [place for place in places if looks.modules[place.module].paired and (place.zero is not None or place.other is not None)]
    plain = dict(zip(known, looks.plain(known)))
    untrained = tuple(place.module for place in known if not plain[place].moment and not plain[place].weight)
    damaged = {place.module for place in known if not plain[place].finite}
    if looks.source.start is None:
        # what trained has moments and a zero factor that moved, what never did has neither; where most differ, nothing was updated yet
        zeros = [place for place in known if place.zero is not None and looks.modules[place.module].displaced[0]]
        halves = {place.module for place in zeros if bool(plain[place].moment) != bool(plain[place].weight)}
        damaged |= halves if len(halves) <= MOST * len(known) else set()
    live = [place for place in known if plain[place].moment and place.module not in damaged and place.module not in untrained]
    alike: dict[object, list[Place]] = {}
    for place in live:  # LoHa's two products, one of which starts at zero
        unit = looks.modules[place.module]
        alike.setdefault((unit.displaced, unit.group), []).append(place)
    suspects = damaged | _singles(places, looks)
    for members in alike.values():
        suspects |= _pairs(members, {place: plain[place].residual for place in members}, looks)
    return Apart(tuple(sorted(suspects)), untrained)


def _pairs(live: Sequence[Place], residuals: Mapping[Place, float], looks: Looks) -> set[int]:
    """Return the balanced pairs whose gauges or residuals stand apart."""
    by_gauge, by_residual = _by_gauge(live, looks), _by_residual(live, [residuals[place] for place in live])
    exchanged: set[int] = set()
    for members in by_shape(live, looks):  # of its own kind first: other kinds may be starved, or trained apart
        by_gauge |= _by_gauge(members, looks) if len(members) >= FEWEST else set()
        by_residual |= _by_residual(members, [residuals[place] for place in members]) if len(members) >= FEWEST else set()
        for how in ("whole", *FACTORS):
            exchanged |= exchanged_in(members, looks, how)
    coarse = {place.module for place, ranked in zip(live, looks.ranked(live, "whole")) if elements(ranked) < ENOUGH}
    both, rest = looks.ranked(live, "whole"), looks.ranked(live, "other")
    in_own = {place.module for place, one, two in zip(live, both, rest) if min(share(one), share(two)) >= BULK}
    # exact tests outrank a residual; a few gauges, or a few numbers, are unlike their siblings' by chance now and then: then both must say it
    lost = ((by_gauge | (by_residual - in_own)) - coarse) | (by_gauge & by_residual)
    lost |= (_by_factor(live, looks, "zero") | _by_factor(live, looks, "other")) - coarse
    lost -= in_place(lost, live, looks)  # each of its factors says so
    suspects = exchanged | fit_elsewhere(lost, live, looks) | of_another_run(lost, live, looks) | misaligned(live, looks)
    suspects |= _kinds_at_random(live, residuals, looks) | _kinds_unbalanced(live, residuals, looks) | kinds_unrelated(live, residuals, looks)
    for how in FACTORS:
        suspects |= factors_exchanged(live, looks, how)
    return suspects


def _singles(places: Sequence[Place], looks: Looks) -> set[int]:
    """Return the units outside balanced pairs that say next to nothing at their place, and far more at that of another such one of their shape.

    Single tensors say more or less by chance, so that to say little is no reason by itself, unless the others say very much.
    """
    known = [place for place in places if place.zero is not None and not looks.modules[place.module].paired]
    kinds: dict[object, list[Place]] = {}
    for place in known:
        kinds.setdefault((re.sub(r"\d+", "#", looks.modules[place.module].prefix), looks.shapes(place.module)), []).append(place)
    weak: dict[object, list[tuple[Place, float]]] = {}
    found = set()
    for members in kinds.values():
        ranked = looks.ranked(members, "whole")
        digits = [combine.digits(one) for one in ranked]
        middle = median(np.array(digits))
        for place, one, own in zip(members, ranked, digits):
            if elements(one) < ENOUGH or len(members) < 3:
                continue
            if own < NEXT_TO_NOTHING and middle >= MUCH:
                found.add(place.module)
            if own < max(RANDOM, middle / 2):
                weak.setdefault(looks.shapes(place.module), []).append((place, own))
    for candidates in weak.values():
        found |= _better_elsewhere(candidates, looks)
    return found


def _better_elsewhere(weak: Sequence[tuple[Place, float]], looks: Looks) -> set[int]:
    found = set()
    for place, own in weak[:MOST_WEAK]:
        at = [Place(place.module, other.zero, place.other) for other, _ in weak[:MOST_WEAK] if other is not place]
        if at and max(combine.digits(one) for one in looks.ranked(at, "zero")) - np.log10(len(at)) >= own + BETTER:
            found.add(place.module)
    return found


def _clear_way(ranked: Sequence[Sequence[Ranked]]) -> str | None:
    """Return the first way of ranking in which nearly all modules stand at the floor and the few that do not are no tail of the rest, or None."""
    for way in combine.ways([one for each in ranked for one in each]):
        shares = reached_by(ranked, way)
        known = shares[np.isfinite(shares)]
        enough = way == "asked" or min(elements(each, way) for each in ranked if each) >= ENOUGH
        few = len(known) / 2 if len(known) <= TEN else max(len(known) / TEN, EXCHANGED)
        if len(known) >= 3 and enough and (known < STRONG).sum() <= few and not is_tail(known):
            return way
    return None


def _most_are_strong(ranked: Sequence[Sequence[Ranked]]) -> bool:
    """Return whether all siblings but a few, of whom an exchanged pair or two may be all, say nearly all that they can."""
    shares = np.array([share(each) for each in ranked])
    known = shares[np.isfinite(shares)]
    return len(known) >= 3 and bool((known < STRONG).sum() <= max(len(known) / TEN, min(len(known) / 2, 2 * EXCHANGED)))


def _by_gauge(live: Sequence[Place], looks: Looks) -> set[int]:
    """Return modules whose gauges look like any other where nearly all of their siblings' do not, and the few that do are no tail of the rest."""
    ranked = looks.ranked(live, "whole")
    way = _clear_way(ranked)
    if way is None:
        return set()
    shares = reached_by(ranked, way)
    weak: dict[object, list[int]] = {}
    for place, reached in zip(live, shares):
        if reached < BULK:
            weak.setdefault(looks.shapes(place.module), []).append(place.module)
    lost = {place.module for place, reached in zip(live, shares) if reached < NOWHERE}
    return lost | {module for members in weak.values() if len(members) > 1 for module in members}


def exchanged_in(members: Sequence[Place], looks: Looks, how: How = "whole") -> set[int]:
    """Return modules that fit another module's place better than their own, beyond what chance explains.

    If the claim is true, a module stands at another's place in a gauge that is uniformly random: of one look the digits are exact. Of an exchanged
    pair both must fit, and balance must hold there far better than here: two looks of one pair are not independent of each other.

    Args:
        members: modules of one pair of shapes.
        looks: at them.
        how: what is tried at the other's place; one factor alone only where nearly all siblings' says much: early in a run balance is weak.
    """
    ranked = dict(zip(members, looks.ranked(members, how)))
    if how != "whole" and not _most_are_strong(list(ranked.values())):
        return set()
    way = (_clear_way(list(ranked.values())) if how == "whole" else None) or "asked"
    reached = reached_by(list(ranked.values()), way)
    own = {place: (float(found), plain.residual, plain.cosine) for place, found, plain in zip(ranked, reached, looks.plain(list(ranked)))}
    outside = [place for place in members if own[place][0] < FLOOR and not own[place][1] <= RELATED]
    inner = sorted(outside, key=lambda place: own[place])[:WEAKEST]
    weak = [place for place in inner if own[place][0] < BULK][: WEAKEST // 2]
    if not weak or len(inner) < 2:
        return set()
    order = sorted(((i, j) for i in range(len(weak)) for j in range(len(inner)) if inner[j] is not weak[i]), key=sum)
    most = max(len(members), TRIED // sum(math.prod(shape) for shape in looks.shapes(weak[0].module))) // 2
    pairs = {ends for i, j in order[:most] for ends in ((weak[i], inner[j]), (inner[j], weak[i]))}
    at = {(one, two): _at_another(one, two, how) for one, two in pairs}
    looks.read(list(at.values()))
    there = dict(zip(at, looks.ranked(list(at.values()), how)))
    plain_there = dict(zip(at, looks.plain(list(at.values()))))
    needed = SURE + math.log10(len(pairs))

    def fits(one: Place, two: Place, times: float) -> bool:
        return share(there[one, two], way) >= FLOOR and plain_there[one, two].residual * times <= own[one][1]

    found = set()
    for one, two in pairs:
        coarse = elements(there[one, two]) < ENOUGH
        both = fits(one, two, FAR if coarse else TWICE) and fits(two, one, FAR if coarse else TWICE)
        gain = [plain_there[a, b].cosine - own[a][2] for a, b in ((one, two), (two, one))]
        both |= min(gain) >= FURTHER / 2 and sum(gain) >= 2 * FURTHER
        if combine.digits(there[one, two]) >= needed or both or (not coarse and fits(one, two, FAR)):
            found |= {one.module, two.module}
    return found


def fit_elsewhere(lost: set[int], live: Sequence[Place], looks: Looks) -> set[int]:
    """Return the lost modules that may have been exchanged: they fit the place of another of their shape that is weak too, or it fits theirs.

    Names that change places are two at least. A module that says little by itself, beside others that say all they can, has seen little.

    Args:
        lost: modules that stand apart by what they say where they are.
        live: pairs of one group.
        looks: at them.
    """
    found: set[int] = set()
    way = (_clear_way(looks.ranked(live, "whole")) if lost else None) or "asked"
    for members in by_shape(live, looks):
        mine = [place for place in members if place.module in lost]
        if len(mine) > WEAKEST:  # no few of many
            found |= {place.module for place in mine}
            continue
        for how in ("whole", *FACTORS) if mine else ():
            by = way if how == "whole" else "asked"
            own = dict(zip(members, reached_by(looks.ranked(members, how), by).tolist()))
            weak = sorted((place for place in members if own[place] < STRONG), key=lambda place: own[place])[:WEAKEST]
            ends = [pair for one in mine for two in weak if two is not one for pair in ((one, two), (two, one))]
            at = {(one, two): _at_another(one, two, how) for one, two in ends}
            looks.read(list(at.values()))
            there = dict(zip(at, reached_by(looks.ranked(list(at.values()), how), by).tolist()))
            for (one, two), reached in there.items():
                if reached > own[one] and (reached >= FLOOR or min(reached, there[two, one]) >= BULK):
                    found |= {one.module, two.module}
    return found & lost


def _at_another(one: Place, two: Place, how: How) -> Place:
    """Return a module where another has its moments: those of both factors, or of one."""
    return two._replace(module=one.module) if how == "whole" else one._replace(**{how: getattr(two, how)})


def factors_exchanged(live: Sequence[Place], looks: Looks, how: How) -> set[int]:
    """Return the modules of kinds whose zero, or whose other, factors fit each other's places in all layers, where they fit no better than by chance.

    If the claim is true, each module's factor stands in the other kind's place in a gauge that is uniformly random: of each pair one is looked at.

    Args:
        live: pairs with both factors in place.
        looks: at them.
        how: which factor.
    """
    kinds: dict[tuple[int, ...], dict[str, dict[tuple[str, ...], Place]]] = {}
    for place in live:
        prefix, shapes = looks.modules[place.module].prefix, looks.shapes(place.module)
        if len(shapes) == len(FACTORS) and place.zero is not None and place.other is not None:
            alike = kinds.setdefault(shapes[FACTORS.index(how)], {})
            alike.setdefault(re.sub(r"\d+", "#", prefix), {})[tuple(re.findall(r"\d+", prefix))] = place
    pairs = []
    for alike in kinds.values():
        weak = [kind for kind in alike.values() if np.mean([share(ranked) for ranked in looks.ranked(list(kind.values()), how)]) < BULK]
        pairs += [(one, two) for at, one in enumerate(weak) for two in weak[at + 1 :]]
    found = set()
    for one, two in pairs:
        layers = [layer for layer in one if layer in two]
        chosen = layers[:: max(1, len(layers) // LAYERS)][:LAYERS]
        at = [one[layer]._replace(**{how: getattr(two[layer], how)}) for layer in chosen]
        if at and combine.digits([each for ranked in looks.ranked(at, how) for each in ranked]) >= SURER + math.log10(len(pairs)):
            found |= {kind[layer].module for kind in (one, two) for layer in layers}
    return found


def _by_factor(live: Sequence[Place], looks: Looks, how: How) -> set[int]:
    """Return modules one of whose factors fits no better than by chance while both together say little, where nearly all siblings' say more."""
    alone = np.array([share(ranked) for ranked in looks.ranked(live, how)])
    both = np.array([share(ranked) for ranked in looks.ranked(live, "whole")])
    known = alone[np.isfinite(alone)]
    if len(known) < 3 or quantile(known, 0.1) < BULK or is_tail(known):
        return set()  # early in a run balance is weak, and many factors say little by themselves
    return {place.module for place, one, two in zip(live, alone, both) if one < NOWHERE and two < BULK}


def _kinds_at_random(live: Sequence[Place], residuals: Mapping[Place, float], looks: Looks) -> set[int]:
    """Return the modules of kinds whose ranks are on average close to those of unrelated moments, where another kind's are far from them.

    Where both runs drew the same starts (one seed, other target modules) half are in their own: mean shares of .1 to .6, where .17 is chance.
    """
    kinds: dict[str, list[tuple[Place, float, bool]]] = {}
    for place, ranked in zip(live, looks.ranked(live, "whole")):
        if np.isfinite(reached := share(ranked)):
            kind = re.sub(r"\d+", "#", looks.modules[place.module].prefix)
            kinds.setdefault(kind, []).append((place, reached, elements(ranked) >= ENOUGH))
    known = {kind: members for kind, members in kinds.items() if len(members) >= (FEWER if all(fine for *_, fine in members) else FEW)}
    means = {kind: float(np.mean([reached for _, reached, _ in members])) for kind, members in known.items()}
    if not means or max(means.values()) < OWN:
        return set()
    unrelated = {kind for kind, members in known.items() if median(np.array([residuals[place] for place, *_ in members])) > UNRELATED}
    lost = [[place for place, *_ in known[kind]] for kind, mean in means.items() if mean < BULK or (mean < OWN and kind in unrelated)]
    return {place.module for members in lost if not in_their_own_moments(members, looks) for place in members}


def _kinds_unbalanced(live: Sequence[Place], residuals: Mapping[Place, float], looks: Looks) -> set[int]:
    """Return the modules of kinds whose other factors fit no better than by chance, and look unrelated, where another kind's reach the floor."""
    kinds: dict[str, list[tuple[Place, float]]] = {}
    for place, ranked in zip(live, looks.ranked(live, "other")):
        if elements(ranked) >= ENOUGH and np.isfinite(residuals[place]):
            kinds.setdefault(re.sub(r"\d+", "#", looks.modules[place.module].prefix), []).append((place, share(ranked)))
    means = {kind: float(np.mean([reached for _, reached in members])) for kind, members in kinds.items() if len(members) >= FEWER}
    if not means or max(means.values()) < FLOOR:
        return set()
    lost = [kinds[kind] for kind, mean in means.items() if mean < UNFIT and balance_digits([place for place, _ in kinds[kind]], looks) < SEEN]
    return {place.module for members in lost if median(np.array([residuals[place] for place, _ in members])) > UNRELATED for place, _ in members}


def kinds_unrelated(live: Sequence[Place], residuals: Mapping[Place, float], looks: Looks) -> set[int]:
    """Return the modules of kinds whose other factors do not balance at all, digits and residuals alike, where another kind's do: in another order.

    A kind as a whole has many digits where each of its modules has few, so this is asked at every rank and in the first steps.

    Args:
        live: pairs with both factors in place.
        residuals: of balance.
        looks: at them.
    """
    kinds: dict[str, list[Place]] = {}
    for place in live:
        if np.isfinite(residuals[place]):
            kinds.setdefault(re.sub(r"\d+", "#", looks.modules[place.module].prefix), []).append(place)
    balances, missed = False, set[int]()
    for members in kinds.values():
        ranked = [one for each in looks.ranked(members, "other") for one in each]
        full, middle = sum(math.log10(one.size) for one in ranked), median(np.array([residuals[place] for place in members]))
        if len(members) < FEWER or full < MISSED:
            continue
        digits = combine.digits(ranked)
        balances |= digits >= SEEN and middle < CLOSE
        if digits < BARELY + (full >= 2 * MISSED) and middle > LOST:
            missed |= {place.module for place in members}
    return missed if balances else set()


def _by_residual(live: Sequence[Place], residuals: Sequence[float]) -> set[int]:
    values = np.array(residuals)
    finite = np.isfinite(values)
    if finite.sum() < 3 or median(values[finite]) > RELATED:
        return set()
    logs = -np.log(values + 1e-3)
    middle = median(logs[finite])
    scale = max(1.4826 * median(np.abs(logs[finite] - middle)), 0.15)
    return {place.module for place, value, log in zip(live, values, logs) if value > UNRELATED and middle - log > 4 * scale}
