"""How far modules moved along the updates of their moments: what did is no other's, what neither did nor balances may be. It proves nothing.

The gauge tells modules apart that began with different numbers. Two runs of one seed that trained different layers, or different kinds of modules,
draw the same numbers one after the other: the n-th module of either began as the n-th of the other, so that moments of a module which only one of
them trained stand half in the gauge of the module which only the other did. They are another layer's all the same: the weights did not move along
them (cosine below .25 in nine of ten, below .1 in most), and do not balance with them (residual above .45 in nine of ten). A module of its own run
fails in one of the two at most: early in a run it lies along its last update, late in a run it balances.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ostate.evidence import combine
from ostate.evidence.looks import Looks, Place
from ostate.evidence.shares import OWN_DIGITS, best_digits, by_shape, elements, share
from ostate.evidence.statistics import median, quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

ALONG, STILL_ALONG = 0.45, 0.35
"""Cosine that a quarter of the siblings reach or pass, from which one that does not lie along its update says something; later in a run, where the
middle one balances."""
BALANCED = 0.2
"""Residual up to which it does."""
ASIDE, PART = 0.25, 0.5
"""Cosine, and part of what a quarter of the siblings reach, below which a module did not move along its moments' updates."""
UNBALANCED = 0.45
"""Residual of balance above which it does not balance with them."""
FIRST = 0.9
"""Share of a group's digits from which a module's gauge is its own all the same."""
NEXT = 0.3
"""Cosine below which, and residual above which, a module beside one that was found is another run's too."""
ALIGNED = 0.35
"""Mean cosine of a kind whose weights moved along the updates at their places: of another order of its layers, or another run's, it is near zero."""
BETWEEN = 0.4, 0.25
"""Cosine below which, and residual above which, a module is on its way: where many are, a run turned about, and what was found is its end."""
FEW, TAIL = 5, 2.0
"""So many at least, and so many times as many as were found: of 16 modules of which another run's were found four are, of 112 of a healthy run 20."""
STRAIGHT, NEARLY = 0.4, 0.8
"""Cosine, and part of the middle one's of its shape, from which a zero factor did so by itself: another module's moments reach .25 in one of ten."""
DRAWN = 3.5
"""Standard deviations by which a factor that starts at random lies along its update, from which its moments are its own."""
MIDDLE_DRAWN, REST_DRAWN, NOT_DRAWN = 4.0, 2.0, 1.0
"""The same of the middle one of a kind, and of all others, from which one that does it by less than the third, and does not balance, may hold another
run's moments."""
ENOUGH_DIGITS = 3.0
"""Digits of a factor from which they are, those of the number of modules added."""
SEEN = 3.0
"""Digits of a kind's random factors from which their moments are their own: in another order one in a thousand has them."""
FEWEST_ELEMENTS = 48
"""Elements of a module's group from which its residual says something by itself: rank 3 and more."""
FEWEST = 3
"""Modules that are compared with each other."""
NOWHERE, UNRELATED, OWN = 0.3, 0.5, 0.6
"""Cosine that three quarters stay below, middle residual, and mean share of a file that is another run's throughout."""


def misaligned(live: Sequence[Place], looks: Looks) -> set[int]:
    """Return the modules whose weights, both factors' or the random one's, neither went the way of their moments nor balance with them.

    Args:
        live: pairs of one group with moments, in place.
        looks: at them.
    """
    return zero_factors_misaligned(live, looks) | random_factors_misaligned(live, looks)


def zero_factors_misaligned(live: Sequence[Place], looks: Looks) -> set[int]:
    """Return the modules that neither lie along their updates nor balance where their siblings do the one or the other; all, where none does.

    Siblings are of one kind, and the file as a whole must do it too: kinds whose gradients are noise lie along nothing late in a run.

    Args:
        live: pairs of one group with moments, in place.
        looks: at them.
    """
    ranked = looks.ranked(live, "whole")
    known = [
        (place, plain.cosine, plain.residual, share(each))
        for place, plain, each in zip(live, looks.plain(live), ranked)
        if elements(each) >= FEWEST_ELEMENTS and math.isfinite(plain.cosine) and math.isfinite(plain.residual)
    ]
    if len(known) < FEWEST:
        return set()
    places, cosines, residuals, shares = [row[0] for row in known], *(np.array([row[column] for row in known]) for column in (1, 2, 3))
    if quantile(cosines, 0.75) < NOWHERE and median(residuals) > UNRELATED and shares.mean() < OWN:
        return {place.module for place in places}
    found, number = np.zeros(len(known), bool), {place: at for at, place in enumerate(places)}
    for members in _kinds(places, looks):
        kind = np.array([number[place] for place in members])
        if len(kind) >= FEWEST and _lie_along(cosines, residuals) and _lie_along(cosines[kind], residuals[kind]):
            found[kind] = cosines[kind] < min(ASIDE, PART * quantile(cosines[kind], 0.75))
    found &= (residuals > UNBALANCED) & (shares < FIRST)
    between = (cosines < BETWEEN[0]) & (residuals > BETWEEN[1]) & ~found
    if between.sum() >= max(FEW, TAIL * found.sum()):
        return set()
    if found.any():
        found |= (cosines < NEXT) & (residuals > NEXT)
    return {place.module for place, one in zip(places, found) if one}


def random_factors_misaligned(live: Sequence[Place], looks: Looks) -> set[int]:
    """Return the modules whose random factor does not lie along its update, and does not balance, where those of its kind do.

    Args:
        live: pairs of one group with moments, in place.
        looks: at them.
    """
    found = set()
    for members in _kinds(live, looks):
        plain = looks.plain(members)
        drawn, residuals = np.array([each.drawn for each in plain]), np.array([each.residual for each in plain])
        if len(members) >= FEWEST and np.isfinite(drawn).all() and median(drawn) >= MIDDLE_DRAWN:
            digits = np.array([best_digits(each) for each in looks.ranked(members, "other")])
            lost = (drawn < NOT_DRAWN) & (residuals > UNRELATED) & (digits < OWN_DIGITS)
            if (drawn[~lost] >= REST_DRAWN).all():  # where a run turns about some of the others lie along nothing either
                found |= {place.module for place, one in zip(members, lost) if one}
    return found


def _kinds(live: Sequence[Place], looks: Looks) -> list[list[Place]]:
    kinds: dict[str, list[Place]] = {}
    for place in live:
        kinds.setdefault(re.sub(r"\d+", "#", looks.modules[place.module].prefix), []).append(place)
    return list(kinds.values())


def _lie_along(cosines: Array, residuals: Array) -> bool:
    """Return whether enough modules lie along their updates for one that does not to say something."""
    return quantile(cosines, 0.75) >= (STILL_ALONG if median(residuals) < BALANCED else ALONG)


def in_place(modules: set[int], live: Sequence[Place], looks: Looks) -> set[int]:
    """Return those of some modules both of whose factors say by themselves that the moments at their place are their own.

    Where latent dimensions look alike many gauges fit, and the share of digits is low; what remains is which way the factors went.

    Args:
        modules: what is asked of.
        live: pairs of one group.
        looks: at them.
    """
    found, needed = set(), ENOUGH_DIGITS + math.log10(max(len(live), 1))
    for members in by_shape(live, looks):
        mine = [place for place in members if place.module in modules]
        cosines = np.array([plain.cosine for plain in looks.plain(members)])
        known = cosines[np.isfinite(cosines)]
        least = max(STRAIGHT, NEARLY * median(known)) if len(known) else math.inf
        for place, plain, zero, other in zip(mine, looks.plain(mine), looks.ranked(mine, "zero"), looks.ranked(mine, "other")):
            moved = plain.cosine >= least or best_digits(zero) >= needed
            if moved and (plain.drawn >= DRAWN or best_digits(other) >= needed):
                found.add(place.module)
    return found


def in_their_own_moments(members: Sequence[Place], looks: Looks) -> bool:
    """Return whether the modules of a kind moved, on average, along the updates at their places, and their random factors balance with them.

    Where latent dimensions look alike, early in a run or where most batches had no gradient, gauges say little of each module and much of them all.
    """
    cosines = [plain.cosine for plain in looks.plain(members)]
    return float(np.mean(cosines)) >= ALIGNED and balance_digits(members, looks) >= SEEN


def balance_digits(members: Sequence[Place], looks: Looks) -> float:
    """Return the digits of the random factors of a kind, all together."""
    return combine.digits([one for each in looks.ranked(members, "other") for one in each])
