"""The sums that the tests of one factor are made of, filled strip by strip or tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ostate.core.lora_modules import LoraModule

from .. import statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]


_TOGETHER = 256
"""Rows of a table that are added to at a time: they stay in cache."""


class Accumulator:
    """K keys of one shape and kind against P positions. q numbers are left of each factor's r rows, in each of `blocks` experts."""

    def __init__(
        self, keys: Sequence[str], positions: Sequence[int], module: LoraModule, projection: statistics.RandomProjection, *, width: int, zero: bool
    ) -> None:
        """Start at zero.

        Args:
            keys: of the factors.
            positions: that could be theirs.
            module: one of their modules.
            projection: how their rows are projected.
            width: rows of a factor in canonical form, blocks * r.
            zero: True for the factors that start at zero.
        """
        self.blocks, self.width, self.zero, self.projection = module.blocks, width, zero, projection
        self.numbers = module.blocks * projection.rows**2
        self.front, self.back = (projection.first, projection.second) if zero else (projection.second, projection.first)
        self.few = None if self.back is None else self.back[: projection.rows // 2]
        """Of update directions against displacements: only a norm is asked for there."""
        shape = (self.blocks, len(keys), projection.rows, len(positions), projection.rows)
        self.left: Array = np.zeros(shape, np.float32)
        """Of weights and first moments."""
        self.right: Array = np.zeros((*shape[:-1], projection.rows if self.few is None else len(self.few)), np.float32)
        """Of displacements and update directions, where asked for."""
        self.inner = np.zeros((len(keys), len(positions)))
        self.moved, self.updates = np.zeros(len(keys)), np.zeros(len(positions))
        """Squared norms of displacements and of update directions."""
        self.displacement_rows = 0
        """Rows of each that these were added up over."""
        self.along: Array = np.zeros((len(positions), self.blocks, projection.rows, projection.rows), np.float32)
        self.roots: Array = np.zeros((len(positions), width), np.float32)
        self.own: Array = np.zeros((len(keys), self.blocks, projection.rows, projection.rows), np.float32)
        """F F^T of the weights by themselves, for L2 decay."""
        self.broken = np.zeros(len(positions), bool)
        """Positions that say nothing."""

    def by_expert(self, rows: Array) -> Array:
        """Return rows (c, w) of a factor stored (n, w) as (blocks, c, r)."""
        return (statistics.zero_blocks if self.zero else statistics.other_blocks)(rows, self.blocks)

    def sketch(self, rows: Array, matrix: Array | None) -> Array:
        """Return the projection of rows (c, w) of a factor stored (n, w): (blocks, c, q)."""
        return self.by_expert(rows) if matrix is None else (rows @ matrix.T)[None]

    def project_into(self, out: Array, rows: Array, matrix: Array | None, at: int) -> None:
        """Add to `out`, (q, n), the projection of rows (c, n) from `at` on of a factor stored (w, n); the first ones replace it."""
        if matrix is None:
            out[...] = rows
        elif at == 0:
            np.matmul(matrix[:, : len(rows)], rows, out=out)
        else:
            out += matrix[:, at : at + len(rows)] @ rows

    def add_strip(self, weights: Array, moments: Array, moved: Array, updates: Array | None, *, first: bool) -> None:
        """Multiply projected strips, each (blocks, c, k or p, q)."""
        _multiply(self.left, weights, moments, first=first)
        if updates is not None:
            _multiply(self.right, moved, updates, first=first)

    def add_batch(self, block: int, first: int, weights: Array, moments: Array, moved: Array | None, updates: Array | None) -> None:
        """Multiply what is left of one expert's factors, (k, q, n), and of the moments of a few positions, from `first` on."""
        for table, ones, twos in ((self.left, weights, moments), (self.right, moved, updates)):
            if ones is not None and twos is not None:
                length = ones.shape[-1]
                product = ones.reshape(-1, length) @ twos.reshape(-1, length).T
                part = table[block, :, :, first : first + len(twos)]
                part[...] = product.reshape(part.shape)

    def products(self, decays: Array, unit: np.float32) -> Array:
        """Return (k, p, blocks * q * q): Z^T m, or m F^T, in units of 1 / unit, less what L2 decay adds to one side, wd * Z^T Z or wd * F F^T.

        The moments then average g + wd * W.
        """
        ordered = self.left.transpose(1, 3, 0, 2, 4) if self.zero else self.left.transpose(1, 3, 0, 4, 2)
        found = ordered.reshape(*self.inner.shape, self.numbers)
        found *= unit
        if decays.any():
            found -= unit * np.where(self.broken, 0, decays)[None, :, None] * self.own.reshape(len(self.own), 1, self.numbers)
        return found

    def displacement(self) -> tuple[Array, Array]:
        """Return cosine and spread, (k, p)."""
        rank = self.width // self.blocks
        squares = np.einsum("ekapb,ekapb->kp", self.right, self.right) * (rank / self.right.shape[2]) * (rank / self.right.shape[4])
        inner = self.inner if self.projection.first is not None else np.einsum("ekapa->kp", self.right)
        cosine, spread = statistics.displacement(inner, squares, np.sqrt(self.moved), np.sqrt(self.updates), rank=rank)
        return cosine.astype(np.float32), spread.astype(np.float32)

    def drift(self, unit: np.float32) -> Array:
        """Return (p, 2, blocks * q * q): u^T m or m u^T, and the diagonal of the sums of sqrt(v)."""
        rank = self.width // self.blocks
        by_block = self.roots.reshape(-1, rank, self.blocks).transpose(0, 2, 1) if self.zero else self.roots.reshape(-1, self.blocks, rank)
        noise = np.zeros_like(self.along)
        for position, blocks in enumerate(by_block):
            noise[position] = [self.projection.diagonal(sums) for sums in blocks]
        along = self.along if self.zero else self.along.transpose(0, 1, 3, 2)
        return np.stack([part.reshape(len(part), self.numbers) for part in (along, noise)], axis=1) * unit

    def forget(self, keys: Sequence[bool], positions: Sequence[bool]) -> None:
        """Set to zero what numbers that are not finite had a part in: True for such keys, and for such positions."""
        rows, columns = np.array(keys, bool), np.array(positions, bool)
        self.broken = columns
        for table in (self.left, self.right):
            table[:, rows] = 0
            table[:, :, :, columns] = 0
        self.inner[rows], self.inner[:, columns] = 0, 0
        self.moved[rows], self.updates[columns], self.own[rows] = 0, 0, 0
        self.along[columns], self.roots[columns] = 0, 0


def _multiply(table: Array, ones: Array, twos: Array, *, first: bool) -> None:
    blocks, count = ones.shape[:2]
    flat, one, two = table.reshape(blocks, table.shape[1] * table.shape[2], -1), ones.reshape(blocks, count, -1), twos.reshape(blocks, count, -1)
    for at in range(0, flat.shape[1], _TOGETHER):
        some = one[..., at : at + _TOGETHER].transpose(0, 2, 1)
        if first:
            np.matmul(some, two, out=flat[:, at : at + _TOGETHER])
        else:
            flat[:, at : at + _TOGETHER] += some @ two


class Features:
    """f^T h for f in (Z, u) and h in (m, sqrt(v) Z / |Z|, sqrt(v) u^3), of one zero factor at one position, for the path form of balance.

    All in units of Z times m. Where the zero factor did not start at zero, Z does not tell its path: h is m alone.
    """

    def __init__(self, sums: Accumulator, *, displaced: bool) -> None:
        """Start at zero."""
        self._sums, self._displaced = sums, displaced
        rows = sums.projection.rows
        self._square, self._count = 0.0, 0
        self._found: Array = np.zeros((sums.blocks, 2 * rows, (3 if displaced else 1) * rows), np.float32)

    def add(self, weight: Array, root: Array, u: Array, projected: tuple[Array, Array, Array], *, square: float, buffer: Array) -> None:
        """Take in rows (c, w) of Z, sqrt(v) and u, and what is left of Z, u (in front) and m (behind).

        `square` is ||Z||^2. `buffer` is as large as Z; it and sqrt(v) are used up.
        """
        sums = self._sums
        self._square, self._count = self._square + square, self._count + weight.size
        start, along, end = projected
        ends = [end]
        if self._displaced:
            np.multiply(u, u, out=buffer)
            buffer *= u
            buffer *= root
            root *= weight
            ends += [sums.sketch(root, sums.back), sums.sketch(buffer, sums.back)]
        self._found += np.concatenate([start, along], axis=-1).transpose(0, 2, 1) @ np.concatenate(ends, axis=-1)

    def total(self) -> Array:
        """Return (2 or 6, blocks * q * q)."""
        rows, size = self._sums.projection.rows, np.sqrt(self._square / max(self._count, 1)) + statistics.TINY
        found = self._found.reshape(self._sums.blocks, 2, rows, -1, rows).transpose(1, 3, 0, 2, 4)
        if self._displaced:
            found = found * np.array([[1, 1 / size, 1], [size, 1, size]], np.float32).reshape(2, 3, 1, 1, 1)
        return found.reshape(found.shape[0] * found.shape[1], -1)
