"""How far modules moved along the updates of their moments: what did is no other's, what neither did nor balances may be. It proves nothing.

The gauge tells modules apart that began with different numbers. Two runs of one seed that trained different layers, or different kinds of modules,
draw the same numbers one after the other: the n-th module of either began as the n-th of the other, so that moments of a module which only one of
them trained stand half in the gauge of the module which only the other did. They are another layer's all the same: the weights did not move along
them (cosine below .25 in nine of ten, below .1 in most), and do not balance with them (residual above .45 in nine of ten). A module of its own run
fails in one of the two at most: early in a run it lies along its last update, late in a run it balances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ostate.evidence import combine
from ostate.evidence.looks import Looks, Place
from ostate.evidence.shares import elements, share
from ostate.evidence.statistics import median, quantile

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
SEEN = 3.0
"""Digits of a kind's random factors from which their moments are their own: in another order one in a thousand has them."""
FEWEST_ELEMENTS = 48
"""Elements of a module's group from which its residual says something by itself: rank 3 and more."""
FEWEST = 4
"""Modules that are compared with each other."""
NOWHERE, UNRELATED, OWN = 0.3, 0.5, 0.6
"""Cosine that three quarters stay below, middle residual, and mean share of a file that is another run's throughout."""


def misaligned(live: Sequence[Place], looks: Looks) -> set[int]:
    """Return the modules that neither lie along their updates nor balance where their siblings do the one or the other; all, where none does.

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
    cosines, residuals, shares = (np.array([row[column] for row in known]) for column in (1, 2, 3))
    top = quantile(cosines, 0.75)
    if top < NOWHERE and median(residuals) > UNRELATED and shares.mean() < OWN:
        return {place.module for place, *_ in known}
    if top < (STILL_ALONG if median(residuals) < BALANCED else ALONG):
        return set()
    found = (cosines < min(ASIDE, PART * top)) & (residuals > UNBALANCED) & (shares < FIRST)
    if found.any():
        found |= (cosines < NEXT) & (residuals > NEXT)
    return {place.module for (place, *_), one in zip(known, found) if one}


def in_their_own_moments(members: Sequence[Place], looks: Looks) -> bool:
    """Return whether the modules of a kind moved, on average, along the updates at their places, and their random factors balance with them.

    Where latent dimensions look alike, early in a run or where most batches had no gradient, gauges say little of each module and much of them all.
    """
    cosines = [plain.cosine for plain in looks.plain(members)]
    ranked = [one for each in looks.ranked(members, "other") for one in each]
    return float(np.mean(cosines)) >= ALIGNED and combine.digits(ranked) >= SEEN
