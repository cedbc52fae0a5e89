"""Test whether the moments of a square pair's two factors are exchanged: they then carry this module's own gauge, the other way round.

Were both exchanged, turning the module's latent dimensions by signs s would turn both factors, Z -> Z s and F -> s F, and their moments as what they
would be: what stands beside Z as s X_Z, what stands beside F as X_F s. Of one that stands in the other's place while another's stands in its own,
those moments stay as they are. The numbers are as likely before as after, so the statistic's rank among all s is uniform. What is claimed
says otherwise: Z^T X_Z and X_F F^T balance, and Z lies along its updates.

With a_ik = Z_ki X_ki (X beside Z), b_ik = X_ik F_ik (beside F): the diagonals of both sides are s_i sum_k s_k a_ik and s_i sum_k s_k b_ik where the
moments are its own other factor's, s_i sum_k a_ik and s_i sum_k b_ik where they are another module's.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ostate.core.tensors import Slot

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
    """Return the claim's rank among all gauges of the exchanged pair; nothing where the factors are not square, or keep no moments.

    Args:
        source: the state and the weights.
        unit: a pair.
        zero: position that is claimed for its zero factor.
        other: position that is claimed for the other one.
        own: whether the moments there are this pair's own other factor's, beside the zero factor and beside the other one.
    """
    shapes = {source.matrix(unit.zero), source.matrix(unit.other)}
    size = source.matrix(unit.zero)[0]
    if shapes != {(size, size)} or unit.blocks > 1 or not (unit.balanced or unit.displaced[0]) or unit.group == "neurons":
        return ()
    one, two = _terms(source, unit, unit.zero, zero), _terms(source, unit, unit.other, other)
    if one is None or two is None:
        return ()
    signs = _signs(size)
    turned = [signs if mine else np.ones_like(signs) for mine in own]
    left, right = turned[0] @ one[0].T, turned[1] @ two[0].T
    values = np.zeros(len(signs))
    if unit.balanced:
        sizes = np.linalg.norm(left, axis=1) + np.linalg.norm(right, axis=1)
        values -= _standardised(np.divide(np.linalg.norm(left - right, axis=1), sizes, out=np.ones(len(signs)), where=sizes > 0))
    if unit.displaced[0]:
        values -= _standardised((signs[:, : len(one[1])] * (turned[0] @ one[1].T)).sum(axis=1))
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
    """Return W m and W u element by element for the first latent dimensions, (dimensions, n) each."""
    entry, ref = source.raw.entries[position], source.adapter.tensors[key]
    first, second = moments_of(source, entry)
    if first is None or entry.numel != ref.numel or source.averages_steps:
        return None
    rows, columns = source.matrix(key)
    tall = unit.is_tall(zero=key == unit.zero)
    slots: list[Slot] = [ref, entry.slots[first], *([entry.slots[second]] if second else [])]
    strip = max(1, source.strip // columns)
    readers = [Rows(slot if slot.shape == ref.shape else slot.with_shape(ref.shape), columns, strip=strip) for slot in slots]
    direction, along, updates = direction_of(source, entry), [], []
    for at in range(0, rows if tall else min(rows, COMPARED), strip):
        weight, m, *rest = (each.take(min(strip, (rows if tall else min(rows, COMPARED)) - at)) for each in readers)
        u = direction.of(m, np.sqrt(np.maximum(rest[0], 0)) if rest else None)
        along.append((weight * m)[:, :COMPARED] if tall else weight * m)
        updates.append((weight * u)[:, :COMPARED] if tall else weight * u)
    if not all(each.finite for each in readers):
        return None
    parts = (np.concatenate(each).astype(np.float64) for each in (along, updates))
    found = tuple(part.T if tall else part for part in parts)
    return found[0], found[1]
