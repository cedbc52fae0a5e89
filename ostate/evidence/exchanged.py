"""Test whether the moments of a pair's two factors of one size are exchanged: they then carry this module's own gauge, the other way round.

Factors of one size are square, or stored flat: FSDP1's flat parameters of B (n, r) and A (r, n) are runs of n r numbers.

Were both exchanged, turning the module's latent dimensions by signs s would turn both factors, Z -> Z s and F -> s F, and their moments as what they
would be: what stands beside Z as s X_Z, what stands beside F as X_F s. Of one that stands in the other's place while another's stands in its own,
those moments stay as they are. The numbers are as likely before as after, so the statistic's rank among all s is uniform. What is claimed
says otherwise: Z^T X_Z and X_F F^T balance, and Z lies along its updates.

With a_ik the sum of Z_ji X_ji over the numbers that would lie in the latent dimension k of F (for square factors Z_ki X_ki), and b_ik the sum of
X_ij F_ij over those that would lie in the dimension k of Z, the diagonals of both sides are s_i sum_k s_k a_ik and s_i sum_k s_k b_ik where the
moments are its own other factor's, s_i sum_k a_ik and s_i sum_k b_ik where they are another module's.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ostate.core.tensors import Slot

from .exchanged_flat import MOST_RANK, products
from .gauge import TIE, Ranked
from .look import Source, direction_of, moments_of
from .tables.stream_rows import Rows
from .units import Unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

COMPARED = 16
"""Latent dimensions whose sides are compared; all of them are turned."""
ENUMERATED = 10
"""Latent dimensions up to which every choice of signs is tried (s and -s are one); of more, DRAWS of them."""
DRAWS = 1023


def exchanged(source: Source, unit: Unit, zero: int, other: int, own: tuple[bool, bool] = (True, True)) -> tuple[Ranked, ...]:
    """Return the claim's rank among all gauges of the exchanged pair; nothing where the factors are not of one size, or keep no moments.

    Args:
        source: the state and the weights.
        unit: a pair.
        zero: position that is claimed for its zero factor.
        other: position that is claimed for the other one.
        own: whether the moments there are this pair's own other factor's, beside the zero factor and beside the other one.
    """
    shape, rank = source.matrix(unit.zero), source.matrix(unit.other)[0 if unit.is_tall(zero=True) else 1]
    if source.matrix(unit.other) != shape[::-1] or unit.blocks > 1 or not (unit.balanced or unit.displaced[0]) or unit.group == "neurons":
        return ()
    if shape[0] != shape[1] and rank <= MOST_RANK and unit.is_tall(zero=True):
        return _flat(source, unit, zero, other, own)
    one, two = _terms(source, unit, unit.zero, zero), _terms(source, unit, unit.other, other)
    if one is None or two is None:
        return ()
    signs = _signs(rank)
    turned = [signs if mine else np.ones_like(signs) for mine in own]
    left, right = turned[0] @ one[0].T, turned[1] @ two[0].T
    along = (signs[:, : len(one[1])] * (turned[0] @ one[1].T)).sum(axis=1)
    return _rank(unit, left, right, along)


def _flat(source: Source, unit: Unit, zero: int, other: int, own: tuple[bool, bool]) -> tuple[Ranked, ...]:
    """Return the same for a tall and a wide factor: signed permutations are turned there, which say more than signs alone."""
    beside_zero, beside_other = _read(source, unit.zero, zero), _read(source, unit.other, other)
    if beside_zero is None or beside_other is None:
        return ()
    permuted = unit.group == "signed"
    (tall, m_zero, u_zero), (wide, m_other, _) = beside_zero, beside_other
    left = products(tall, m_zero.reshape(wide.shape), turn=(True, own[0]), permuted=permuted).sum(axis=2)
    right = products(m_other.reshape(tall.shape), wide, turn=(own[1], True), permuted=permuted).sum(axis=1)
    along = products(tall, u_zero.reshape(wide.shape), turn=(True, own[0]), permuted=permuted).sum(axis=(1, 2))
    return _rank(unit, left, right, along)


def _read(source: Source, key: str, position: int) -> tuple[Array, Array, Array] | None:
    """Return a factor, and the first moments and the updates at a position as the factor's, float64; None where they cannot be had."""
    entry, ref = source.raw.entries[position], source.adapter.tensors[key]
    first, second = moments_of(source, entry)
    if first is None or entry.numel != ref.numel or source.averages_steps:
        return None
    rows, columns = source.matrix(key)
    slots: list[Slot] = [ref, entry.slots[first], *([entry.slots[second]] if second else [])]
    readers = [Rows(slot if slot.shape == ref.shape else slot.with_shape(ref.shape), columns, strip=rows) for slot in slots]
    weight, m, *rest = (each.take(rows) for each in readers)
    if not all(each.finite for each in readers):
        return None
    updates = direction_of(source, entry).of(m, np.sqrt(np.maximum(rest[0], 0)) if rest else None)
    return weight.astype(np.float64), m.astype(np.float64), updates.astype(np.float64)


def _rank(unit: Unit, left: Array, right: Array, along: Array) -> tuple[Ranked, ...]:
    """Return the rank of the first turn: by balance, of the sides' diagonals (turns, r), and by the zero factor along its updates (turns,)."""
    values = np.zeros(len(along))
    if unit.balanced:
        sizes = np.linalg.norm(left, axis=1) + np.linalg.norm(right, axis=1)
        values -= _standardised(np.divide(np.linalg.norm(left - right, axis=1), sizes, out=np.ones(len(along)), where=sizes > 0))
    if unit.displaced[0]:
        values -= _standardised(along)
    return (Ranked(int((values >= values[0] - TIE).sum()), len(values)),)


def _standardised(values: Array) -> Array:
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)


@lru_cache(maxsize=2)
def _signs(size: int) -> Array:
    """Return choices of signs, (count, size), the identity first."""
    if size <= ENUMERATED:
        return np.array([(1.0, *rest) for rest in itertools.product((1.0, -1.0), repeat=size - 1)])
    drawn = np.random.default_rng(size).choice((1.0, -1.0), (DRAWS, size))
    return np.vstack([np.ones(size), drawn])


def _terms(source: Source, unit: Unit, key: str, position: int) -> tuple[Array, Array] | None:
    """Return sums of W m and W u, (latent dimensions compared, latent dimensions of the pair): by the claimed one and by that of the exchange."""
    entry, ref = source.raw.entries[position], source.adapter.tensors[key]
    first, second = moments_of(source, entry)
    if first is None or entry.numel != ref.numel or source.averages_steps:
        return None
    rows, columns = source.matrix(key)
    tall = unit.is_tall(zero=key == unit.zero)
    slots: list[Slot] = [ref, entry.slots[first], *([entry.slots[second]] if second else [])]
    strip = max(1, source.strip // columns)
    readers = [Rows(slot if slot.shape == ref.shape else slot.with_shape(ref.shape), columns, strip=strip) for slot in slots]
    direction, latent = direction_of(source, entry), min(columns if tall else rows, COMPARED)
    along, updates = (np.zeros(latent * (columns if tall else rows)) for _ in range(2))
    for at in range(0, rows if tall else latent, strip):
        count = min(strip, (rows if tall else latent) - at)
        weight, m, *rest = (each.take(count) for each in readers)
        u = direction.of(m, np.sqrt(np.maximum(rest[0], 0)) if rest else None)
        bins = _bins(at, count, rows, columns, latent, tall=tall)
        for total, product in ((along, weight * m), (updates, weight * u)):
            total += np.bincount(bins, (product[:, :latent] if tall else product).ravel().astype(np.float64), len(total))
    if not all(each.finite for each in readers):
        return None
    return along.reshape(latent, -1), updates.reshape(latent, -1)


def _bins(at: int, count: int, rows: int, columns: int, latent: int, *, tall: bool) -> NDArray[np.intp]:
    """Return for each number of `count` rows from `at` on: its latent dimension, and the one it would have as a number of the other factor.

    Numbers lie row by row. Of B (n, r) number j is in dimension j mod r, of A (r, n) in j // n: here is the claimed one times r plus the other.
    """
    place = np.arange(at, at + count)[:, None] * columns + np.arange(latent if tall else columns)
    rank = columns if tall else rows
    own, other = (place % columns, place // rows) if tall else (place // columns, place % rank)
    return np.asarray(own * rank + other).ravel()
