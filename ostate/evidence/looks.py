"""The products and ranks of each module at each pair of positions, kept because several claims ask for the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ostate.evidence import gauge, permuted
from ostate.evidence.exchanged import exchanged
from ostate.evidence.gauge import Ranked
from ostate.evidence.look import FactorProducts, Shared, Source, look
from ostate.evidence.residual import Products
from ostate.evidence.starts import join, root, shared_starts
from ostate.evidence.tables.stream_rows import Buffers
from ostate.evidence.units import Group, Unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_NOTHING = np.zeros(0, np.float32)
How = Literal["whole", "zero", "other"]
SLAB = 1 << 19
"""Numbers of one of the arrays in which others are kept: 4 MB."""
TOGETHER = 512
"""Modules whose gauges are tried at a time."""


class Place(NamedTuple):
    """A module and the positions where its two factors are thought to be; None where a factor has no place with state."""

    module: int
    zero: int | None
    other: int | None


class Plain(NamedTuple):
    """Numbers of a module that need no gauge; they explain and may make us refuse, and prove nothing."""

    residual: float
    """|L - R| / (|L| + |R|) with the drift projected out: 0 for the true pair, about .7 for unrelated ones; NaN where not known."""
    weight: float
    """Sum of squares of the zero factor."""
    moment: float
    """Sum of squares of both first moments."""
    finite: bool
    cosine: float = float("nan")
    """Between what the zero factor moved and its last update, all latent dimensions together; NaN where its start is not known."""
    drawn: float = float("nan")
    """How far the factor that starts at random lies along its last update, in standard deviations of a start whose elements are independent."""


def _signed(products: Products, how: How, balanced: bool, *, signs_only: bool = False) -> list[tuple[Ranked, ...]]:
    """Return the ranks of a gauge of signed permutations, or of signs alone; by displacement alone where nothing balances."""
    if not balanced:
        return gauge.moved(products.displacement, signs_only=signs_only)
    return {"whole": gauge.whole, "zero": gauge.zero, "other": gauge.other}[how](products, signs_only=signs_only)


STATISTICS: dict[Group, Callable[[Products, How, bool], list[tuple[Ranked, ...]]]] = {
    "signed": _signed,
    "signs": partial(_signed, signs_only=True),
    "permuted": lambda products, _how, _balanced: permuted.moved(products.displacement),
    "neurons": lambda products, how, _balanced: permuted.of_neurons(products, how),
}
"""What may be done to a unit's latent dimensions -> (products, which factors' moments, whether they balance) -> ranks of each block."""


class Looks:
    """Reads each factor of the modules once at each position, and keeps what was computed."""

    def __init__(self, source: Source, modules: Sequence[Unit]) -> None:
        """Nothing is read yet.

        Args:
            source: the state and the weights.
            modules: what is tested of the adapter.
        """
        self.source, self.modules = source, modules
        self.displaced, self.balanced = any(each.displaced[0] for each in modules), any(each.balanced for each in modules)
        self._factors: dict[tuple[int, bool, int], FactorProducts | None] = {}
        self._ranked: dict[tuple[How, Place], tuple[Ranked, ...]] = {}
        self._exchanged: dict[tuple[Place, tuple[bool, bool]], tuple[Ranked, ...]] = {}
        self._plain: dict[Place, Plain] = {}
        self._kept, self._buffers = _Pool(), Buffers()
        self._starts: dict[frozenset[int], list[int]] = {}

    def factor(self, module: int, position: int | None, *, zero: bool) -> FactorProducts | None:
        """Return what is left of a factor and the moments at a position."""
        return None if position is None else self._factor(module, position, None, zero=zero)

    def read(self, places: Sequence[Place]) -> None:
        """Read what `ranked` will ask of these, a few modules at one another's places: each tensor once, as far as memory is kept for that."""
        for zero in (True, False):  # one factor after the other: half as much is held at a time
            shared = Shared()
            for place in places:
                position = place.zero if zero else place.other
                if position is not None:
                    self._factor(place.module, position, shared, zero=zero)

    def _factor(self, module: int, position: int, shared: Shared | None, *, zero: bool) -> FactorProducts | None:
        at = module, zero, position
        if at not in self._factors:
            each = self.modules[module]
            found = look(self.source, each, each.zero if zero else each.other, position, self._buffers, shared)
            self._factors[at] = self._kept.factor(found)
        return self._factors[at]

    def ranked(self, places: Sequence[Place], how: How) -> list[tuple[Ranked, ...]]:
        """Return where each module's own gauge stands among all of its group; nothing for a module that nothing is known of."""
        new = [place for place in dict.fromkeys(places) if (how, place) not in self._ranked]
        alike: dict[tuple[int, Group, bool, bool], list[Place]] = {}
        for place in new:
            unit, rank = self.modules[place.module], self._rank(place)
            if rank and unit.group is not None:
                alike.setdefault((rank, unit.group, self._balances(place), self._decays(place)), []).append(place)
            else:
                self._ranked[how, place] = ()
        for (rank, group, balanced, _), members in alike.items():
            for some in _batches(members, TOGETHER):
                self._rank_some(some, rank, group, how, balanced=balanced)
        return [self._ranked[how, place] for place in places]

    def exchanged(self, place: Place, own: tuple[bool, bool]) -> tuple[Ranked, ...]:
        """Return the ranks against an exchange of a pair's own two factors: of the zero factor's moments, of the other one's."""
        if place.zero is None or place.other is None:
            return ()
        if (place, own) not in self._exchanged:
            self._exchanged[place, own] = exchanged(self.source, self.modules[place.module], place.zero, place.other, own)
        return self._exchanged[place, own]

    def plain(self, places: Sequence[Place]) -> list[Plain]:
        """Return modules' numbers without a gauge."""
        alike: dict[tuple[int, ...], dict[Place, tuple[FactorProducts, FactorProducts]]] = {}
        for place in dict.fromkeys(places):
            if place in self._plain:
                continue
            zero, other = self._both(place)
            known = [factor for factor in (zero, other) if factor is not None]
            finite = all(factor.finite for factor in known)
            weight, moment = zero.weight if zero is not None else 0.0, sum(factor.moment for factor in known)
            cosine = zero.cosine if zero is not None and self.modules[place.module].displaced[0] else float("nan")
            drawn = other.cosine * math.sqrt(other.compared) if other is not None else float("nan")
            self._plain[place] = Plain(float("nan"), weight, moment, finite, cosine, drawn)
            if zero is not None and other is not None and self._balances(place) and finite and zero.weight and other.moment:
                alike.setdefault(zero.first.shape, {})[place] = zero, other
        for members in alike.values():
            for some in _batches(members, TOGETHER):
                for place, residual in zip(some, _residuals([members[place] for place in some])):
                    self._plain[place] = self._plain[place]._replace(residual=residual)
        return [self._plain[place] for place in places]

    def shapes(self, module: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of a module's two factors, or of the one tensor that it is."""
        each, tensors = self.modules[module], self.source.adapter.tensors
        return tuple(tensors[key].shape for key in (each.zero, each.other) if key)

    def starts(self, places: Sequence[Place]) -> list[int]:
        """Return, by module, the first module that began with the same numbers, so that both have one gauge; itself where none did."""
        factors = {place.module: self.factor(place.module, place.other, zero=False) for place in places}
        known = frozenset(module for module, factor in factors.items() if factor is not None)
        if known not in self._starts:
            found = [factors.get(module) for module in range(len(self.modules))]
            starts, gauges = shared_starts([factor.sample if factor is not None else _NOTHING for factor in found]), dict[str, int]()
            for module, unit in enumerate(self.modules):
                if unit.gauge:
                    join(starts, gauges.setdefault(unit.gauge, module), module)
            self._starts[known] = [root(starts, module) for module in range(len(starts))]
        return self._starts[known]

    def _both(self, place: Place) -> tuple[FactorProducts | None, FactorProducts | None]:
        return self.factor(place.module, place.zero, zero=True), self.factor(place.module, place.other, zero=False)

    def _rank(self, place: Place) -> int:
        """Return the latent dimensions known of a module's factors, 0 where nothing is known."""
        known = [factor for factor in self._both(place) if factor is not None]
        if not known or not all(factor.finite for factor in known) or not any(factor.moment or factor.stored is not None for factor in known):
            return 0
        return int(known[0].noise.shape[1])

    def _balances(self, place: Place) -> bool:
        both = place.zero is not None and place.other is not None
        return both and self.modules[place.module].balanced and not self.source.averages_steps

    def _decays(self, place: Place) -> bool:
        """Return whether L2 decay acts through the gradient of one of its factors."""
        return self._balances(place) and any(factor is not None and factor.decay is not None for factor in self._both(place))

    def _rank_some(self, places: Sequence[Place], rank: int, group: Group, how: How, *, balanced: bool) -> None:
        parts = [self._products(place, rank, how) for place in places]
        counts = [len(part.left) for part in parts]
        joined = Products(*(np.concatenate(column) for column in zip(*parts) if column[0] is not None))
        found = STATISTICS[group](joined, how, balanced)
        at = 0
        for place, count in zip(places, counts):  # the experts of one tensor have a gauge each
            self._ranked[how, place] = tuple(each for ranked in found[at : at + count] for each in ranked)
            at += count

    def _products(self, place: Place, rank: int, how: How) -> Products:
        zero, other = self._both(place)
        unit = self.modules[place.module]
        nothing, none = np.zeros((unit.blocks, rank, rank)), np.zeros((unit.blocks, rank))
        displacement = nothing
        if zero is not None and how != "other":
            displacement = _displacement(zero, known=unit.displaced[0])
        if other is not None and how != "zero":  # held there, not turned
            displacement = displacement + _displacement(other, known=unit.displaced[1])
        balanced = self._balances(place) and zero is not None and other is not None
        return Products(
            displacement,
            zero.first if balanced and zero is not None else nothing,
            other.first.transpose(0, 2, 1) if balanced and other is not None else nothing,
            zero.drift if zero is not None else nothing,
            other.drift.transpose(0, 2, 1) if other is not None else nothing,
            zero.noise if zero is not None else none,
            other.noise if other is not None else none,
            *(self._decay(place, nothing) if balanced else (None, None)),
        )

    def _decay(self, place: Place, nothing: Array) -> tuple[Array | None, Array | None]:
        if not self._decays(place):
            return None, None
        zero, other = (nothing if factor is None or factor.decay is None else factor.decay for factor in self._both(place))
        return zero, other


class _Pool:
    """Keeps small arrays within large ones: each by itself would pin the memory of the strips that were read around it."""

    def __init__(self) -> None:
        self._slab = np.zeros(0)
        self._at = 0

    def factor(self, found: FactorProducts | None) -> FactorProducts | None:
        """Return the same with its arrays kept here."""
        if found is None:
            return None
        update, first, drift, noise = (self._keep(part) for part in (found.update, found.first, found.drift, found.noise))
        decay, stored = (None if part is None else self._keep(part) for part in (found.decay, found.stored))
        return found._replace(update=update, first=first, decay=decay, stored=stored, drift=drift, noise=noise, sample=self._keep(found.sample))

    def _keep(self, array: NDArray[np.floating]) -> Array:
        if self._at + array.size > self._slab.size:
            self._slab, self._at = np.empty(max(SLAB, array.size)), 0
        view = self._slab[self._at : self._at + array.size].reshape(array.shape)
        view[...] = array
        self._at += array.size
        return view


def _displacement(factor: FactorProducts, *, known: bool) -> Array:
    """Return what says that a factor is its moments': W z^T where the state keeps weights z, less (W - start) u^T where the start is known."""
    found = -_unit(factor.update) if known else np.zeros_like(factor.update)
    return found if factor.stored is None else found + _unit(factor.stored)


def _side(factor: FactorProducts) -> Array:
    """Return what the factor brings to balance, (e, r, r), less what L2 decay added to it."""
    return factor.first if factor.decay is None else factor.first - factor.decay


def _unit(matrices: Array) -> Array:
    return np.asarray(matrices / (np.linalg.norm(matrices, axis=(1, 2), keepdims=True) + 1e-300))


def _batches(places: Iterable[Place], size: int) -> Iterator[list[Place]]:
    rest = iter(places)
    while some := list(islice(rest, size)):
        yield some


def _residuals(factors: Sequence[tuple[FactorProducts, FactorProducts]]) -> list[float]:
    """Return of each pair (zero, other) of one rank the residual of balance over all experts and latent dimensions."""
    zeros, others = zip(*factors)
    left, right = np.stack([_side(zero) for zero in zeros]), np.stack([_side(other).transpose(0, 2, 1) for other in others])  # (pairs, e, r, r)
    rank, size = left.shape[-1], left.shape[-1] ** 2
    both = np.stack([left.reshape(-1, size), right.reshape(-1, size)], 2)  # (pairs * e, r * r, 2)
    if rank > 2:
        drifts = np.stack([zero.drift for zero in zeros]), np.stack([other.drift.transpose(0, 2, 1) for other in others])
        noises = (np.stack([factor.noise for factor in each])[..., None] * np.eye(rank) for each in (zeros, others))
        base = np.stack([span.reshape(-1, size) for span in (*drifts, *noises)], 2)
        base = base / (np.linalg.norm(base, axis=1, keepdims=True) + 1e-300)
        q, _ = np.linalg.qr(base)
        both = both - q @ (q.transpose(0, 2, 1) @ both)
    both = both.reshape(len(factors), -1, 2)
    top = np.abs(both).max(axis=(1, 2), keepdims=True)
    known = np.isfinite(top) & (top > 0)
    both = np.divide(both, top, out=np.full_like(both, np.nan), where=known)
    norms = np.linalg.norm(both, axis=1).sum(axis=1)
    found: list[float] = (np.linalg.norm(both[..., 0] - both[..., 1], axis=1) / norms).tolist()
    return found


def places_of(keys: Sequence[str | None], modules: Sequence[Unit], with_state: Iterable[int]) -> list[Place]:
    """Return where a claim puts the factors of each module."""
    stated = set(with_state)
    at = {key: position for position, key in enumerate(keys) if key is not None and position in stated}
    return [Place(index, at.get(module.zero), at.get(module.other)) for index, module in enumerate(modules)]
