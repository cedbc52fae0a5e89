"""What a state's numbers say of orders of names; naming asks evidence through this class alone.

A verdict on an order rests on exact nulls (`gauge`, `order`). What is fitted to the file (`ask`) may search for an order where no claim
stands, and may make us refuse; it proves no claim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ostate.core.lora_modules import starts_at_zero
from ostate.core.naming import ALL_TESTS, Adapter, Claim, Evidence
from ostate.core.state import RawState
from ostate.core.tensors import TensorRef, shape_text
from ostate.evidence import order
from ostate.evidence.apart import ENOUGH, apart
from ostate.evidence.displaced import misplaced_values
from ostate.evidence.look import Source
from ostate.evidence.looks import Looks, Place, places_of
from ostate.evidence.methods import METHODS, method_of, silent_reason, starts_of, unbalanced_reason, units_of
from ostate.evidence.shares import elements
from ostate.evidence.unpaired import known_starts, starts_at_hand

from .master_weights import TEST as MASTER_WEIGHTS
from .master_weights import with_master_weights
from .untested import Untested, stated

if TYPE_CHECKING:
    from ostate.core.family import Alternative, Family

EQUAL = 12.0
"""Digits of a position whose master weights equal the adapter's tensor in eight numbers or more, and no other tensor of its size."""
BYTES_A_PAIR = 800
"""What the tables of the fitted search hold for a key at a position of its shape: about 200 numbers."""
MOST_PAIRS = 4_000_000
"""Pairs of keys and positions of one shape up to which that search is asked: 3 GB."""


class Comparison:
    """A state against the weights that were saved with it."""

    def __init__(
        self,
        raw: RawState,
        adapter: Adapter,
        *,
        previous: Adapter | None = None,
        base: Mapping[str, TensorRef] | None = None,
        own: Adapter | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            raw: the state.
            adapter: the trained weights.
            previous: an earlier adapter of the same run.
            base: the base model's weights, where at hand.
            own: the checkpoint's own weights of the same save, asked where the adapter says nothing.
        """
        self.raw, self.adapter, self.previous, self.base = raw, adapter, previous, base
        self.untested: str | None = None
        self.own = own
        self.stated = stated(raw)
        self._looks: Looks | None = None

    @property
    def looks(self) -> Looks:
        """The looks at this adapter's modules."""
        if self._looks is None:
            self._looks = Looks(Source(self.raw, self.adapter, self.previous), units_of(self.adapter, previous=self.previous))
        return self._looks

    def test(self, claim: Claim, family: Family, *, tries: int = 1) -> Evidence:
        """Return what the numbers say of a claim, one of so many that are tried, against every other order that a program could have made."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            found = self._test(claim, family, self.adapter, tries)
        if found.verdict == "silent" and self.own is not None:
            self.adapter, self.own, self._looks = self.own, None, None
            return self.test(claim, family, tries=tries)
        return found

    def _test(self, claim: Claim, family: Family, adapter: Adapter, tries: int) -> Evidence:
        looks, places = self.looks, places_of(claim.keys, self.looks.modules, self.stated)
        single, signs, against = self._single(claim, adapter, places)
        weighed = order.weigh_all(claim.keys, claim.names, family, looks, single, self.stated, signs)
        left, spent = order.rejected(weighed, tries=tries)
        if any(each.what == order.EVERYTHING for each in left):
            return self._silent(weighed[0].digits, against, places)
        open_positions = frozenset().union(*(each.moved for each in left)) if left else frozenset()
        # a name that was written down and that the weights do not know is nobody's to prove
        unnamed = {p for p in self.stated if claim.names[p] is None or (claim.explicit and claim.keys[p] is None)}
        proven = frozenset(self.stated) - open_positions - unnamed
        own = {position: digits for position, digits in single.items() if position not in signs}  # another tensor of its layer may share its signs
        by_itself = order.within(order.alone(places, looks, own)) & proven
        odd = apart(places, looks)
        weakest = min(weighed, key=lambda each: each.digits)
        suspect = _positions(odd.against, places) | self._suspects(claim, places)
        starts = starts_of(adapter) | starts_at_hand(adapter, claim.keys, self.previous, self.base)
        suspect |= misplaced_values(looks.source, claim.keys, self.stated, starts)
        standing = proven - suspect
        return Evidence(
            verdict="contradicted" if against else "verified" if proven else "silent",
            proven=standing,
            undecided=tuple(position for position in self.stated if position not in standing),
            alone=by_itself - suspect,
            apart=tuple(sorted(suspect)),
            untrained=tuple(sorted(_positions(odd.untrained, places))),
            order=tuple(claim.keys),
            margin=None if left else round(-float(np.log10(max(spent, 1e-300))), 2),
            weakest_alternative=(weakest.what, round(weakest.digits, 2)),
            open=tuple((each.what, round(each.digits, 2)) for each in left),
            contradictions=against,
            used=self._used(looks, single),
            silent=self._untested(looks) | ({} if proven else {"gauge": _left(left)}),
        )

    def _suspects(self, claim: Claim, places: Sequence[Place]) -> frozenset[int]:
        """Return positions that the fitted search would rather have under another name, where modules are of a rank whose gauges say little alone."""
        coarse = {place.module for place, ranked in zip(places, self.looks.ranked(places, "whole")) if ranked and elements(ranked) < ENOUGH}
        if not coarse:
            return frozenset()
        return frozenset(self.search(claim).apart) & _positions(tuple(coarse), places)

    def better(self, claim: Claim, family: Family) -> Alternative | None:
        """Return another order of the family that the numbers prove against the claim, or None: an exact contradiction.

        Were the claim true, the modules that the other order moves would stand there in random gauges.
        """
        looks, index = self.looks, order.factor_index(self.looks)
        needed = -np.log10(order.MOST_CHANCE) + np.log10(max(len(family.alternatives), 1))
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for other in family.alternatives:
                moved = {p for p in self.stated if other.keys[p] != claim.keys[p]}
                places = places_of(other.keys, looks.modules, self.stated)
                some = _some(places, moved)
                if order.against(claim.keys, some, places, index, looks, {}) >= needed:
                    return other
        return None

    def search(self, claim: Claim) -> Evidence:
        """Return what the fitted search says of a claim: it may contradict it, or fit no order at all; None of it is proof."""
        untested = self._too_many()
        if untested:
            return Untested(self.raw, untested).search(claim)
        from ostate.evidence import ask  # 15 modules, a fortieth of a proven repair, which never searches

        return ask.verify(claim.keys, self.raw, self.adapter, previous=self.previous, base=self.base)

    def recover(self) -> Evidence:
        """Return the order that the numbers alone give, by fitted tails.

        Raises nothing: a search that there is no memory for is silent and says so.
        """
        untested = self._too_many()
        if untested:
            return Untested(self.raw, untested).recover()
        from ostate.evidence import recover

        return recover.recover(self.raw, self.adapter, previous=self.previous, base=self.base)

    def _too_many(self) -> str:
        """Return why the search is not asked: the memory that its tables would take; empty where it is."""
        count: dict[tuple[int, ...], int] = {}
        for entry in self.raw.entries:
            if entry.has_state and entry.shape is not None:
                count[entry.shape] = count.get(entry.shape, 0) + 1
        shape, most = max(count.items(), key=lambda item: item[1], default=((), 0))
        if most * most <= MOST_PAIRS:
            return ""
        memory = f"comparing each with each would take {most * most * BYTES_A_PAIR / 1e9:,.0f} GB of memory"
        return f"{most:,} tensors have the shape {shape_text(shape)}: {memory}; {math.isqrt(MOST_PAIRS):,} of one shape are searched at most"

    def _single(
        self, claim: Claim, adapter: Adapter, places: Sequence[Place]
    ) -> tuple[dict[int, float], frozenset[int], tuple[tuple[int, str, str], ...]]:
        """Return digits of single positions, which of them rest on signs, and master weights that equal another tensor than the claimed one."""
        speaking = [place for place, ranked in zip(places, self.looks.ranked(places, "whole")) if any(one.size > 1 for one in ranked)]
        taken = {position for place in speaking for position in (place.zero, place.other) if position is not None}
        source = self.looks.source
        single = known_starts(source, claim.keys, self.stated, taken, self.previous, self.base)
        if not self.raw.master:
            return single, frozenset(single), ()
        said = with_master_weights(Evidence(verdict="silent", undecided=self.stated), claim.keys, self.raw, adapter)
        return {**single, **dict.fromkeys(said.proven, EQUAL)}, frozenset(single) - said.proven, said.contradictions

    def _silent(self, digits: float, against: tuple[tuple[int, str, str], ...], places: Sequence[Place]) -> Evidence:
        needed = -np.log10(order.MOST_CHANCE)
        why = self._untested(self.looks)
        if not why or set(why) == {"balance"}:  # displacement was asked
            why = {"gauge": f"no better than chance ({digits:.1f} digits; {needed:.0f} are needed)", **why}
        zeros = [place for place in places if place.zero is not None and self.looks.modules[place.module].displaced[0]]
        known = [place for place in zeros if self.looks.factor(place.module, place.zero, zero=True) is not None]  # not where moments are factored
        if self.looks.displaced and self.looks.source.start is None and known and not any(plain.weight for plain in self.looks.plain(known)):
            why = {ALL_TESTS: "the adapter was never trained: every factor that starts at zero is still zero"}
        return Evidence(
            verdict="contradicted" if against else "silent",
            undecided=self.stated,
            contradictions=against,
            silent=why,
            weakest_alternative=(order.EVERYTHING, round(digits, 2)),
        )

    def _used(self, looks: Looks, single: Mapping[int, float]) -> tuple[str, ...]:
        found = []
        if looks.modules:
            found += ["displacement"] * looks.displaced + ["balance"] * looks.balanced
        if single:
            found.append(MASTER_WEIGHTS if self.raw.master else "start")
        return tuple(found)

    def _untested(self, looks: Looks) -> dict[str, str]:
        if not any(unit.group for unit in looks.modules):
            why = silent_reason(self.adapter)
            return {"displacement": why, "balance": why}
        if looks.displaced:
            why = unbalanced_reason(self.adapter)
            return {"balance": why} if why and not looks.balanced else {}
        unknown = "no tensor of it is known to start at zero or one"
        return {"displacement": (None if method_of(self.adapter) in METHODS else starts_at_zero(self.adapter)) or unknown}


def _left(left: Sequence[order.Weighed]) -> str:
    """Return which other order the numbers leave open where nothing is proven: the one with the fewest digits."""
    weakest = min(left, key=lambda each: each.digits)
    return f"not excluded: {weakest.what} ({weakest.digits:.1f} digits; {-np.log10(order.MOST_CHANCE):.0f} are needed)"


def _positions(modules: Sequence[int], places: Sequence[Place]) -> frozenset[int]:
    chosen = set(modules)
    return frozenset(p for place in places if place.module in chosen for p in (place.zero, place.other) if p is not None)


def _some(places: Sequence[Place], moved: set[int], most: int = 64) -> set[int]:
    """Return the moved positions of the first modules only: as many as say enough."""
    taken = [place for place in places if place.zero in moved or place.other in moved][:most]
    return {p for place in taken for p in (place.zero, place.other) if p is not None and p in moved}
