"""All factors of one shape against all positions that could be theirs: each read once, in strips, multiplied, and forgotten.

Every number that the tests compare is a sum over a factor's n columns: what is held at a time is a strip of each tensor, not the tensors.
A factor stored (n, w) comes in strips of its n, all tensors side by side; one stored (w, n) comes tensor by tensor, and is projected while it
is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ostate.core.lora_modules import LoraModule

from .. import statistics
from .accumulator import Accumulator, Features
from .read_moments import MomentReader, ReadPlan
from .stream_rows import MomentRows, Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

STRIP = 32 << 20
"""Bytes of strips held at a time."""
PIECE = 1 << 18
"""Numbers of a tensor read at a time where it is projected at once: as many as stay in cache."""
DISPLACEMENT_NUMBERS = 1 << 15
"""Numbers of a zero factor that displacement is computed from at the first look: the null deviation of a cosine is then 1/181 or less."""
BATCH = 16
"""Positions whose projected moments are held at a time."""


@dataclass(slots=True)
class Precomputed:
    """What to prepare of a claim's pairs while both tensors of a pair are in memory, and what came of it."""

    likely: Mapping[int, str]
    displaced: bool
    found: dict[tuple[str, int], Array]


@dataclass(frozen=True, slots=True)
class FactorTable:
    """All factors of one shape and kind: k keys against p positions."""

    row: Mapping[str, int]
    positions: tuple[int, ...]
    cosine: Array
    spread: Array
    products: Array
    """(k, p, q): Z^T m, or m F^T."""
    drift: Array
    """(p, 2, q): u^T m or m u^T, and what noise leaves of it, the diagonal of sums of sqrt(v)."""
    width: int
    numel: int
    """Elements that displacement is computed from: of a whole factor, but for the first look."""
    unit: float


@dataclass(frozen=True, slots=True)
class _Task:
    """What is compared with what, and how it is stored."""

    reader: MomentReader
    earlier: MomentReader | None
    keys: Sequence[str]
    positions: tuple[int, ...]
    width: int
    length: int
    displaced: bool
    decays: Array

    def weights(self, plan: ReadPlan) -> list[Rows]:
        return [self.reader.weights(key, plan) for key in self.keys]

    def starts(self, plan: ReadPlan) -> list[Rows]:
        """Of the earlier factors; none where the start is zero, or not known."""
        return [self.earlier.weights(key, plan) for key in self.keys] if self.earlier is not None else []

    def moments(self, plan: ReadPlan) -> list[MomentRows]:
        return [self.reader.moments(position, self.keys[0], plan) for position in self.positions]

    @property
    def every(self) -> int:
        """Displacement is computed from one of so many rows: from fewer than all at the first look, as long as they hold DISPLACEMENT_NUMBERS."""
        return max(1, self.width * self.length // DISPLACEMENT_NUMBERS) if self.reader.sketch_rows == statistics.SKETCH_ROWS[0] else 1

    def strip(self, rows: int, columns: float, most: int) -> int:
        """Return how many of so many rows, `most` at most, to hold of every tensor at a time, where `columns` numbers are held of each.

        All of them where every range read is a request to a server.
        """
        if self.reader.far:
            return rows
        tensors = len(self.keys) + len(self.positions)
        strips = -(-rows // max(1, min(most, int(STRIP // (4 * columns * tensors)))))
        return -(-rows // max(1, strips))  # all of one size


class _Strip:
    """The same rows of all factors and moments of a factor table: what is left of each, to be multiplied, and a place to read one pair of them.

    The arrays are made once for all strips: memory that was never touched costs more than what is done with it.
    """

    def __init__(self, task: _Task, sums: Accumulator, most: int, every: int) -> None:
        """Allocate for strips of `most` rows; displacement is computed from one row in `every`."""
        keys, positions, kept, few = len(task.keys), len(task.positions), sums.projection.rows, sums.right.shape[-1]
        some = -(-most // every)
        moved, updates = some if task.earlier is not None else 0, some if task.displaced else 0
        whole = updates if sums.front is not None else 0  # projected factors do not tell the inner products of whole ones
        shapes = (most, keys, kept), (most, positions, kept), (moved, keys, kept), (updates, positions, few)
        self._all = [np.empty((sums.blocks, *shape), np.float32) for shape in shapes]
        self._whole = [np.empty((tensors, whole, task.width), np.float32) for tensors in (keys, positions)]
        self._every, self._place = every, np.empty((5, most, task.width), np.float32)
        self.cut(most)

    def cut(self, count: int) -> None:
        """Shorten the strip to so many rows."""
        some = -(-count // self._every)
        self.count, self.displacement_rows, self.place, self.ones = count, some, self._place[:, :count], np.ones(count, np.float32)
        weights, moments, moved, updates = self._all
        self.weights, self.moments = weights[:, :count], moments[:, :count]
        self.moved, self.updates = (moved if moved.size else weights)[:, :some], updates[:, :some] if updates.size else None
        """Displacements and update directions; None where they are not compared."""
        self.whole_moved, self.whole_updates = (whole[:, :some] for whole in self._whole)

    def add_to(self, sums: Accumulator) -> None:
        """Multiply what the strip holds into the sums."""
        sums.add_strip(self.weights, self.moments, self.moved, self.updates, first=not sums.displacement_rows)
        sums.displacement_rows += self.displacement_rows
        if self.whole_moved.size:
            sums.inner += self.whole_moved.reshape(len(self.whole_moved), -1) @ self.whole_updates.reshape(len(self.whole_updates), -1).T


def factor_table(
    reader: MomentReader, earlier: MomentReader | None, keys: Sequence[str], positions: tuple[int, ...], module: LoraModule, precomputed: Precomputed
) -> FactorTable:
    """Return what the tests compare of the factors `keys`, all of one shape and kind, and of the moments at `positions`.

    Args:
        reader: the state and the adapter.
        earlier: the state and an earlier adapter, where it tells the start.
        keys: of the factors.
        positions: that could be theirs.
        module: one of their modules: how they are stored.
        precomputed: what else to compute while the tensors are at hand.
    """
    task, sums, tall = _prepare(reader, earlier, keys, positions, module)
    row, top = {key: index for index, key in enumerate(keys)}, 0.0
    if positions and (tall or sums.zero):
        likely = {column: row[key] for column, position in enumerate(positions) if (key := precomputed.likely.get(position)) in row}
        prepared = likely.items() if sums.zero and earlier is None else ()
        features = {(index, column): Features(sums, displaced=precomputed.displaced) for column, index in prepared}
        top = _by_strips(task, sums, features, turned=not tall)
        precomputed.found.update({(keys[index], positions[column]): each.total() for (index, column), each in features.items()})
    elif positions:
        top = _by_tensors(task, sums)
    unit = np.float32(1 / (top or 1.0))
    cosine, spread = sums.displacement() if task.displaced else (np.zeros((0, 0), np.float32),) * 2
    products = sums.products(task.decays, unit)
    numel = task.width * (sums.displacement_rows or task.length)
    return FactorTable(row, positions, cosine, spread, products, sums.drift(unit), task.width, numel, float(unit))


def features_of(reader: MomentReader, key: str, position: int, module: LoraModule, *, displaced: bool) -> Array:
    """Return the features of a zero factor at a position, (d, q); see `Features`."""
    task, sums, tall = _prepare(reader, None, [key], (position,), module)
    features = Features(sums, displaced=displaced)
    _by_strips(task, sums, {(0, 0): features}, turned=not tall)
    return features.total()


def _prepare(
    reader: MomentReader, earlier: MomentReader | None, keys: Sequence[str], positions: tuple[int, ...], module: LoraModule
) -> tuple[_Task, Accumulator, bool]:
    """Return what to do, where to add it up, and whether the factors are stored (n, w)."""
    zero, stored = keys[0] == module.zero, reader.stored(keys[0])
    tall = zero != module.flipped
    width, length = stored[::-1] if tall else stored
    decays = np.array([reader.decay(position) for position in positions], np.float32)
    task = _Task(reader, earlier, keys, positions, width, length, zero or earlier is not None, decays)
    return task, Accumulator(keys, positions, module, reader.projection(width, module), width=width, zero=zero), tall


def _by_strips(task: _Task, sums: Accumulator, features: Mapping[tuple[int, int], Features], *, turned: bool) -> float:
    """Add up strips of the n columns of all factors and moments; returns the largest first moment.

    The moments that a claim gives a weight are read right after it, while it is in cache.
    """
    every = 1 if turned or sums.front is None else task.every
    columns = sums.blocks * sums.projection.rows + (task.width / every if task.displaced and sums.front is not None else 0)
    strip = task.length if turned else task.strip(task.length, columns, PIECE // task.width)
    plan, held = ReadPlan(task.width, strip, turned), _Strip(task, sums, strip, every)
    weights, starts, moments = task.weights(plan), task.starts(plan), task.moments(plan)
    claimed: dict[int, list[tuple[int, Features]]] = {}
    for (index, column), each in features.items():
        claimed.setdefault(index, []).append((column, each))
    alone = sorted(set(range(len(moments))) - {column for _, column in features})
    for at in range(0, task.length, strip):
        held.cut(min(strip, task.length - at))
        for index, rows in enumerate(weights):
            weight, front = _weigh(task, sums, held, index, rows, starts[index] if starts else None)
            for column, each in claimed.get(index, ()):
                root, u, along, end = _measure(sums, held, column, moments[column])
                each.add(weight, root, u, (front, along, end), square=rows.square, buffer=held.place[4])
        for column in alone:
            _measure(sums, held, column, moments[column])
        held.add_to(sums)
    sums.forget([not rows.finite for rows in weights], [not pair.finite for pair in moments])
    return max(pair.top for pair in moments)


def _weigh(task: _Task, sums: Accumulator, held: _Strip, index: int, rows: Rows, start: Rows | None) -> tuple[Array, Array]:
    """Take in the next strip of a weight, and its displacement; returns it whole and projected."""
    weight = rows.take(held.count, held.place[0])
    front = held.weights[:, :, index] = sums.sketch(weight, sums.front)
    if task.decays.any():
        sums.own[index] += front.transpose(0, 2, 1) @ sums.sketch(weight, sums.back)
    moved = weight[: held.displacement_rows]
    if start is not None:
        moved = (weight - start.take(held.count))[: held.displacement_rows]
        held.moved[:, :, index] = sums.sketch(moved, sums.front)
        rows.finite = rows.finite and start.finite
    if held.updates is not None:
        sums.moved[index] += np.vdot(moved, moved)
    if held.whole_moved.size:
        held.whole_moved[index] = moved
    return weight, front


def _measure(sums: Accumulator, held: _Strip, column: int, pair: MomentRows) -> tuple[Array, Array, Array, Array]:
    """Take in the next strip of a position's moments; returns sqrt(v) and u whole, then u and m projected."""
    m, root, u = pair.take(held.count, held.place[1:4])
    end = held.moments[:, :, column] = sums.sketch(m, sums.back)
    along = sums.sketch(u, sums.front)
    sums.along[column] += along.transpose(0, 2, 1) @ end
    sums.roots[column] += held.ones @ root
    if held.updates is not None:
        some = u[: held.displacement_rows]
        held.updates[:, :, column] = sums.sketch(some, sums.few)
        sums.updates[column] += np.vdot(some, some)
        if held.whole_updates.size:
            held.whole_updates[column] = some
    return root, u, along, end


def _by_tensors(task: _Task, sums: Accumulator) -> float:
    """Add up factors stored (w, n), expert by expert; returns the largest first moment. What is left of all weights is held, and of a few moments."""
    rank = task.width // sums.blocks
    piece = rank if sums.front is None else max(1, min(rank, PIECE // task.length))
    plan, place = ReadPlan(task.length, piece), np.empty((3, piece, task.length), np.float32)
    weights, starts, moments = task.weights(plan), task.starts(plan), task.moments(plan)
    for block in range(sums.blocks):
        sketched = np.empty((len(weights), sums.projection.rows, task.length), np.float32)
        sketched_moved = np.empty_like(sketched) if starts else None
        second = np.empty((sums.projection.rows if task.decays.any() else 0, task.length), np.float32)
        left = np.empty((min(BATCH, len(moments)), sums.projection.rows, task.length), np.float32)
        for index, rows in enumerate(weights):
            for at in range(0, rank, piece):
                weight = rows.take(min(piece, rank - at), place[0, : rank - at])
                sums.project_into(sketched[index], weight, sums.front, at)
                if len(second):
                    sums.project_into(second, weight, sums.back, at)
                if sketched_moved is not None:
                    sums.project_into(sketched_moved[index], weight - starts[index].take(len(weight)), sums.front, at)
                    rows.finite = rows.finite and starts[index].finite
            sums.own[index, block] = sketched[index] @ second.T if len(second) else 0
        for first in range(0, len(moments), BATCH):
            _moment_batch(task, sums, moments[first : first + BATCH], first, block, place, left, sketched, sketched_moved)
    if task.displaced:
        _whole_products(task, sums)
    sums.forget([not rows.finite for rows in weights], [not pair.finite for pair in moments])
    return max(pair.top for pair in moments)


def _moment_batch(
    task: _Task,
    sums: Accumulator,
    moments: Sequence[MomentRows],
    first: int,
    block: int,
    place: Array,
    left: Array,
    weights: Array,
    moved: Array | None,
) -> None:
    """Multiply one expert's moments of a few positions, from `first` on, with what is left of all weights; `place` and `left` are buffers."""
    rank, piece, sketched_m = task.width // sums.blocks, place.shape[1], left[: len(moments)]
    sketched_u = np.empty((len(moments), sums.right.shape[-1], task.length), np.float32) if moved is not None else None
    along, ones = np.empty_like(sketched_m[0]), np.ones(task.length, np.float32)
    for index, pair in enumerate(moments):
        for at in range(0, rank, piece):
            m, root, u = pair.take(min(piece, rank - at), place[:, : rank - at])
            sums.project_into(sketched_m[index], m, sums.back, at)
            sums.project_into(along, u, sums.front, at)
            if sketched_u is not None:
                sums.project_into(sketched_u[index], u, sums.few, at)
            sums.roots[first + index, block * rank + at :][: len(root)] = root @ ones
        sums.along[first + index, block] = along @ sketched_m[index].T
    sums.add_batch(block, first, weights, sketched_m, moved, sketched_u)


def _whole_products(task: _Task, sums: Accumulator) -> None:
    """Add up inner products and norms of whole displacements and update directions stored (w, n): a second reading."""
    strip = task.strip(task.width, task.length, task.width)
    plan = ReadPlan(task.length, strip)
    weights, starts, moments = task.weights(plan), task.starts(plan), task.moments(plan)
    for at in range(0, task.width, strip):
        count = min(strip, task.width - at)
        moved = np.stack([rows.take(count).reshape(-1) - start.take(count).reshape(-1) for rows, start in zip(weights, starts)])
        updates = np.stack([pair.take(count)[2].reshape(-1) for pair in moments])
        sums.moved += np.einsum("kn,kn->k", moved, moved)
        sums.updates += np.einsum("pn,pn->p", updates, updates)
        sums.inner += moved @ updates.T
