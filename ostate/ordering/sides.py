"""All factors of one shape against all positions that could be theirs: each read once, multiplied once, and forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ostate.ordering import laws
from ostate.ordering.modules import Module
from ostate.ordering.reading import Moments, Reader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Early:
    """What to prepare of a claim's pairs while both tensors of a pair are in memory."""

    likely: Mapping[int, str]
    displaced: bool
    found: dict[tuple[str, int], Array]


@dataclass(frozen=True, slots=True)
class Side:
    """All factors of one shape and kind: k keys against p positions."""

    row: Mapping[str, int]
    positions: tuple[int, ...]
    cosine: Array
    spread: Array
    products: Array
    """(k, p, q): Z^T m, or m F^T."""
    drift: Array
    width: int
    numel: int
    unit: float


def side(reader: Reader, earlier: Reader | None, keys: Sequence[str], positions: tuple[int, ...], module: Module, early: Early) -> Side:
    """Return what the laws compare of the factors `keys`, all of one shape and kind, and of the moments at `positions`.

    Args:
        reader: the state and the adapter.
        earlier: the state and an earlier adapter, where it tells the start.
        keys: of the factors.
        positions: that could be theirs.
        module: one of their modules: how they are stored.
        early: what else to compute while the tensors are at hand.
    """
    zero = keys[0] == module.zero
    weights = _Weights(reader, earlier, keys, positions, module, zero=zero)
    mixer, row = weights.mixer, {key: index for index, key in enumerate(keys)}
    if not positions:
        none, q = np.zeros((len(keys), 0)), len(weights.thin[0]) ** 2 // module.blocks
        products, drift = np.zeros((len(keys), 0, q), np.float32), np.zeros((0, 2, q), np.float32)
        return Side(row, positions, none, none, products, drift, weights.width, weights.numel, 1.0)
    first, drifts, sizes = [], [], []
    for position in positions:
        found = reader.moments(position, keys[0], module, zero=zero)
        m, u = (mixer.second(found.m), mixer.first(found.u)) if zero else (mixer.first(found.m), mixer.second(found.u))
        drifts.append(np.stack([_blocks(u @ m.T if zero else m @ u.T, module, zero), _blocks(mixer.diagonal(found.root.sum(axis=1)), module, zero)]))
        sizes.append(max(float(found.m.max()), -float(found.m.min())))
        first.append(m)
        weights.compare(found.u, mixer.second(found.u) if zero else u)
        key = early.likely.get(position)
        if zero and earlier is None and key in row:
            early.found[key, position] = zero_features(weights.whole(row[key]), found, module.blocks, mixer, displaced=early.displaced)
    unit = np.float32(1 / (max(sizes) or 1.0))
    cosine, spread = weights.displacement()
    cross = laws.cross_products(weights.thin, [unit * m for m in first])
    products = _blocks(cross if zero else cross.transpose(0, 1, 3, 2), module, zero) - unit * weights.decay
    return Side(row, positions, cosine, spread, products, np.stack(drifts) * unit, weights.width, weights.numel, float(unit))


class _Weights:
    """The adapter's factors of one shape, and their displacements against update directions that come one by one.

    The whole factors are kept for displacement alone; balance needs what the mixer leaves of them.
    """

    def __init__(self, reader: Reader, earlier: Reader | None, keys: Sequence[str], positions: Sequence[int], module: Module, *, zero: bool) -> None:
        decays = np.array([reader.decay(position) for position in positions], np.float32)
        self.thin: list[Array] = []
        self._moved: list[Array] = []
        self._norms: list[float] = []
        own = []
        for index, key in enumerate(keys):
            weight = reader.weight(key, module, zero=zero)
            if index == 0:
                self.shape, self.mixer = weight.shape, laws.mixer(len(weight), module.blocks, thin=reader.thin)
                self._order: Literal["C", "F"] = "C" if weight.flags.c_contiguous else "F"
                self._whole = np.empty((len(keys) if zero or earlier else 0, weight.size), np.float32)
            self.thin.append((self.mixer.first if zero else self.mixer.second)(weight))
            if decays.any():
                own.append(_blocks(self.mixer.first(weight) @ self.mixer.second(weight).T, module, zero))
            if len(self._whole):
                moved = weight - earlier.weight(key, module, zero=zero) if earlier else weight
                self._whole[index] = moved.reshape(-1, order=self._order)
                self._norms.append(float(np.linalg.norm(self._whole[index])))
                self._moved.append(self.mixer.first(moved))
        self.width, self.numel = self.shape[0], self._whole.shape[1]
        self.decay: Array = np.stack(own)[:, None, :] * decays[None, :, None] if own else np.zeros((1, 1, 1), np.float32)
        """What L2 decay inside the gradient adds to one side of balance, wd * Z^T Z or wd * F F^T: the moments then average g + wd * W."""
        self._waiting = np.empty((_TOGETHER if len(self._whole) else 0, self.numel), np.float32)
        self._updates: list[Array] = []
        self._sizes: list[float] = []
        self._inner: list[Array] = []

    def whole(self, row: int) -> Array:
        """Return a factor as it was read, where it was kept and no earlier one was taken off."""
        return np.asarray(self._whole[row].reshape(self.shape, order=self._order))

    def compare(self, u: Array, thin: Array) -> None:
        """Take in the next update direction, and what the mixer leaves of it."""
        if not len(self._whole):
            return
        at = len(self._updates) % _TOGETHER
        self._waiting[at] = u.reshape(-1, order=self._order)
        self._sizes.append(float(np.linalg.norm(self._waiting[at])))
        self._updates.append(thin)
        if at == _TOGETHER - 1:
            self._inner.append(self._whole @ self._waiting.T)

    def displacement(self) -> tuple[Array, Array]:
        """Return cosine and spread, (k, p); nothing where no start is known."""
        if not len(self._whole):
            return np.zeros((0, 0)), np.zeros((0, 0))
        if rest := len(self._updates) % _TOGETHER:
            self._inner.append(self._whole @ self._waiting[:rest].T)
        products = laws.cross_products(self._moved, self._updates)
        self._whole = self._waiting = np.empty((0, self.numel), np.float32)
        inner = np.concatenate(self._inner, axis=1)
        return laws.displacement(inner, products, np.array(self._norms), np.array(self._sizes), rank=self.width)


_TOGETHER = 4
"""Update directions that are multiplied at once."""


def _blocks(products: Array, module: Module, zero: bool) -> Array:
    """Return (..., w, w) products as (..., q); of the other factor's, rows of the moment come first, as in m_A A^T."""
    return (laws.zero_blocks if zero else laws.other_blocks)(products, module.blocks)


def zero_features(Z: Array, found: Moments, blocks: int, mixer: laws.Mixer, *, displaced: bool) -> Array:
    """Return f^T h for f in (Z, u) and h in (m, sqrt(v) Z / |Z|, sqrt(v) u^3), (6, q), all in units of Z times m; inputs are (width, n).

    Where the zero factor did not start at zero, Z does not tell its path: f^T h for h = m alone, (2, q).
    """
    size = float(np.abs(Z).mean()) + laws.TINY
    first, second = mixer.first(found.u), mixer.second(found.m)
    width = len(first)
    starts = np.concatenate([mixer.first(Z), first * np.float32(size) if displaced else first])
    gradients = [second]
    if displaced:
        gradients += [mixer.second(found.root * Z) / np.float32(size), mixer.second(found.root * (found.u * found.u * found.u))]
    products = (starts @ np.concatenate(gradients).T).reshape(2, width, len(gradients), width).transpose(0, 2, 1, 3)
    return laws.zero_blocks(products.reshape(-1, width, width), blocks)
