"""All factors of one shape against all positions that could be theirs: each read once, in strips, multiplied, and forgotten.

Every number that the laws compare is a sum over a factor's n columns: what is held at a time is a strip of each tensor, not the tensors.
A factor stored (n, w) comes in strips of its n, all tensors side by side; one stored (w, n) comes tensor by tensor, and is thinned while it
is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ostate.ordering.modules import Module
from ostate.ordering.reading import Plan, Reader
from ostate.ordering.rows import MomentRows, Rows
from ostate.ordering.sums import Features, Sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

STRIP = 32 << 20
"""Bytes of strips held at a time."""
PIECE = 1 << 18
"""Numbers of a tensor read at a time where it is thinned while it is read."""
BATCH = 16
"""Positions whose thinned moments are held at a time."""


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
    """(p, 2, q): u^T m or m u^T, and what noise leaves of it, the diagonal of sums of sqrt(v)."""
    width: int
    numel: int
    unit: float


@dataclass(frozen=True, slots=True)
class _Task:
    """What is compared with what, and how it is stored."""

    reader: Reader
    earlier: Reader | None
    keys: Sequence[str]
    positions: tuple[int, ...]
    width: int
    length: int
    displaced: bool
    decays: Array

    def weights(self, plan: Plan) -> list[Rows]:
        return [self.reader.weights(key, plan) for key in self.keys]

    def starts(self, plan: Plan) -> list[Rows]:
        """Of the earlier factors; none where the start is zero, or not known."""
        return [self.earlier.weights(key, plan) for key in self.keys] if self.earlier is not None else []

    def moments(self, plan: Plan) -> list[MomentRows]:
        return [self.reader.moments(position, self.keys[0], plan) for position in self.positions]

    def strip(self, rows: int, columns: int) -> int:
        """Return how many of so many rows to hold of every tensor at a time: all of them where every range read costs a journey."""
        tensors = len(self.keys) + len(self.positions)
        return rows if self.reader.far else max(1, min(rows, STRIP // (4 * columns * tensors)))


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
    task, sums, tall = _prepare(reader, earlier, keys, positions, module)
    row, top = {key: index for index, key in enumerate(keys)}, 0.0
    if positions and (tall or sums.zero):
        likely = {column: row[key] for column, position in enumerate(positions) if (key := early.likely.get(position)) in row}
        prepared = likely.items() if sums.zero and earlier is None else ()
        features = {(index, column): Features(sums, displaced=early.displaced) for column, index in prepared}
        top = _by_strips(task, sums, features, turned=not tall)
        early.found.update({(keys[index], positions[column]): each.total() for (index, column), each in features.items()})
    elif positions:
        top = _by_tensors(task, sums)
    unit = np.float32(1 / (top or 1.0))
    cosine, spread = sums.displacement() if task.displaced else (np.zeros((0, 0), np.float32),) * 2
    products = sums.products(task.decays, unit)
    return Side(row, positions, cosine, spread, products, sums.drift(unit), task.width, task.width * task.length, float(unit))


def features_of(reader: Reader, key: str, position: int, module: Module, *, displaced: bool) -> Array:
    """Return the features of a zero factor at a position, (d, q); see `Features`."""
    task, sums, tall = _prepare(reader, None, [key], (position,), module)
    features = Features(sums, displaced=displaced)
    _by_strips(task, sums, {(0, 0): features}, turned=not tall)
    return features.total()


def _prepare(reader: Reader, earlier: Reader | None, keys: Sequence[str], positions: tuple[int, ...], module: Module) -> tuple[_Task, Sums, bool]:
    """Return what to do, where to add it up, and whether the factors are stored (n, w)."""
    zero, stored = keys[0] == module.zero, reader.stored(keys[0])
    tall = zero != module.flipped
    width, length = stored[::-1] if tall else stored
    decays = np.array([reader.decay(position) for position in positions], np.float32)
    task = _Task(reader, earlier, keys, positions, width, length, zero or earlier is not None, decays)
    return task, Sums(keys, positions, module, reader.mixer(width, module), width=width, zero=zero), tall


def _by_strips(task: _Task, sums: Sums, features: Mapping[tuple[int, int], Features], *, turned: bool) -> float:
    """Add up strips of the n columns of all factors and moments; returns the largest first moment."""
    strip = task.length if turned else task.strip(task.length, task.width)
    plan = Plan(task.width, strip, turned)
    weights, starts, moments = task.weights(plan), task.starts(plan), task.moments(plan)
    whole = task.displaced and sums.front is not None  # thinned factors do not tell the inner products of whole ones
    for at in range(0, task.length, strip):
        count = min(strip, task.length - at)
        thin, thin_moved, raw = _weight_strip(task, sums, weights, starts, count, keep=whole or bool(features))
        thin_m, thin_u, raw_u = _moment_strip(task, sums, moments, features, raw, thin, keep=whole)
        sums.add_strip(thin, thin_m, thin_moved, thin_u)
        if whole:
            sums.inner += raw.reshape(len(raw), -1) @ raw_u.reshape(len(raw_u), -1).T
    sums.forget([not rows.finite for rows in weights], [not pair.finite for pair in moments])
    return max(pair.top for pair in moments)


def _weight_strip(
    task: _Task, sums: Sums, weights: Sequence[Rows], starts: Sequence[Rows], count: int, *, keep: bool
) -> tuple[Array, Array | None, Array]:
    """Return the next strip of all weights thinned, of their displacements thinned (None: not compared), and of displacements whole where kept."""
    thin = np.empty((sums.blocks, count, len(weights), sums.mixer.rows), np.float32)
    thin_moved = np.empty_like(thin) if starts else thin
    raw = np.empty((len(weights) if keep else 0, count, task.width), np.float32)
    for index, rows in enumerate(weights):
        weight = rows.take(count, raw[index] if keep else None)
        thin[:, :, index] = sums.thinned(weight, sums.front)
        if task.decays.any():
            sums.own[index] += thin[:, :, index].transpose(0, 2, 1) @ sums.thinned(weight, sums.back)
        square = rows.square
        if starts:
            weight -= starts[index].take(count)
            thin_moved[:, :, index] = sums.thinned(weight, sums.front)
            rows.finite = rows.finite and starts[index].finite
            square = float(np.vdot(weight, weight))
        sums.moved[index] += square
    return thin, thin_moved if task.displaced else None, raw


def _moment_strip(
    task: _Task,
    sums: Sums,
    moments: Sequence[MomentRows],
    features: Mapping[tuple[int, int], Features],
    weights: Array,
    thin: Array,
    *,
    keep: bool,
) -> tuple[Array, Array | None, Array]:
    """Return the next strip of all first moments thinned, of the update directions thinned (None: not compared), and of them whole where kept.

    Features are added to on the way, from the same strip of the weights, whole and thinned.
    """
    count = thin.shape[1]
    thin_m = np.empty((sums.blocks, count, len(moments), sums.mixer.rows), np.float32)
    thin_u = np.empty((*thin_m.shape[:-1], sums.right.shape[-1]), np.float32) if task.displaced else None
    raw = np.empty((len(moments) if keep else 0, count, task.width), np.float32)
    ready = {column: (index, each) for (index, column), each in features.items()}
    ones = np.ones(count, np.float32)
    for column, pair in enumerate(moments):
        m, root, u = pair.take(count, raw[column] if keep else None)
        end = thin_m[:, :, column] = sums.thinned(m, sums.back)
        along = sums.thinned(u, sums.front)
        sums.along[column] += along.transpose(0, 2, 1) @ end
        sums.roots[column] += ones @ root
        if thin_u is not None:
            thin_u[:, :, column] = sums.thinned(u, sums.few)
            sums.updates[column] += np.vdot(u, u)
        if column in ready:
            index, each = ready[column]
            each.add(weights[index], root, u, (thin[:, :, index], along, end))
    return thin_m, thin_u, raw


def _by_tensors(task: _Task, sums: Sums) -> float:
    """Add up factors stored (w, n), expert by expert; returns the largest first moment. What is left of all weights is held, and of a few moments."""
    rank = task.width // sums.blocks
    piece = rank if sums.front is None else max(1, min(rank, PIECE // task.length))
    plan = Plan(task.length, piece)
    weights, starts, moments = task.weights(plan), task.starts(plan), task.moments(plan)
    for block in range(sums.blocks):
        thin = np.zeros((len(weights), sums.mixer.rows, task.length), np.float32)
        thin_moved = np.zeros_like(thin) if starts else None
        for index, rows in enumerate(weights):
            second = np.zeros((sums.mixer.rows if task.decays.any() else 0, task.length), np.float32)
            for at in range(0, rank, piece):
                weight = rows.take(min(piece, rank - at))
                thin[index] += sums.mixed(weight, sums.front, at)
                if len(second):
                    second += sums.mixed(weight, sums.back, at)
                if thin_moved is not None:
                    thin_moved[index] += sums.mixed(weight - starts[index].take(len(weight)), sums.front, at)
                    rows.finite = rows.finite and starts[index].finite
            sums.own[index, block] = thin[index] @ second.T if len(second) else 0
        for first in range(0, len(moments), BATCH):
            _moment_batch(task, sums, moments[first : first + BATCH], first, block, piece, thin, thin_moved)
    if task.displaced:
        _whole_products(task, sums)
    sums.forget([not rows.finite for rows in weights], [not pair.finite for pair in moments])
    return max(pair.top for pair in moments)


def _moment_batch(
    task: _Task, sums: Sums, moments: Sequence[MomentRows], first: int, block: int, piece: int, weights: Array, moved: Array | None
) -> None:
    """Multiply one expert's moments of a few positions, from `first` on, with what is left of all weights."""
    rank = task.width // sums.blocks
    thin_m = np.zeros((len(moments), sums.mixer.rows, task.length), np.float32)
    thin_u = np.zeros((len(moments), sums.right.shape[-1], task.length), np.float32) if moved is not None else None
    for index, pair in enumerate(moments):
        along = np.zeros_like(thin_m[0])
        for at in range(0, rank, piece):
            m, root, u = pair.take(min(piece, rank - at))
            thin_m[index] += sums.mixed(m, sums.back, at)
            along += sums.mixed(u, sums.front, at)
            if thin_u is not None:
                thin_u[index] += sums.mixed(u, sums.few, at)
            sums.roots[first + index, block * rank + at :][: len(root)] = root.sum(axis=1)
        sums.along[first + index, block] = along @ thin_m[index].T
    sums.add_batch(block, first, weights, thin_m, moved, thin_u)


def _whole_products(task: _Task, sums: Sums) -> None:
    """Add up inner products and norms of whole displacements and update directions stored (w, n): a second reading."""
    strip = task.strip(task.width, task.length)
    plan = Plan(task.length, strip)
    weights, starts, moments = task.weights(plan), task.starts(plan), task.moments(plan)
    for at in range(0, task.width, strip):
        count = min(strip, task.width - at)
        moved = np.stack([rows.take(count).reshape(-1) - start.take(count).reshape(-1) for rows, start in zip(weights, starts)])
        updates = np.stack([pair.take(count)[2].reshape(-1) for pair in moments])
        sums.moved += np.einsum("kn,kn->k", moved, moved)
        sums.updates += np.einsum("pn,pn->p", updates, updates)
        sums.inner += moved @ updates.T
