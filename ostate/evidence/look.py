"""Read a LoRA module's two factors and the moments at two positions, each once, and keep r x r products of them.

A factor of a module is read as a matrix of r latent dimensions by n. Wide ones, stored (r, n), need only their first rows; tall ones, stored
(n, r), are read a strip at a time. Of a rank above `Unit.most` the first so many latent dimensions are compared: they already say more than
any verdict asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from ostate.core.files import is_remote
from ostate.core.naming import Adapter
from ostate.core.state import Entry, Hyper, RawState
from ostate.core.tensors import Slot
from ostate.optimizers import OPTIMIZERS
from ostate.optimizers.slots import first_moment, second_moment

from . import statistics
from .starts import COMPARED
from .stored_weights import Spread, stored_weights
from .tables.stream_rows import Buffers, Rows, betas_of, decay_within, eps_of
from .units import Unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]
    Doubles = NDArray[np.float64]

STRIP = 1 << 16
"""Numbers of a tall tensor read at a time: as many as stay in a core's own cache until they are added up."""
FAR_STRIP = 1 << 19
"""The same where every range that is read costs a journey."""
PIECE = 1 << 16
"""Numbers of a wide one added up at a time, for the same reason."""
SHARED = 32 << 20
"""Bytes of matrices that are kept for further looks."""
OTHER_BASIS = frozenset({"rotated", "projected", "blocks"})
"""Forms of second moments that are not told element by element in the parameter's own basis."""
SIGNS = frozenset({"lion", "lion_bnb", "signsgd"})
"""Optimizers whose update is the sign of a mean of gradients."""


class FactorProducts(NamedTuple):
    """What is left of one factor and the moments at one position; e experts (1 elsewhere), r latent dimensions; float64."""

    update: Doubles
    """(e, r, r): sum over n of W u, rows W's latent dimensions."""
    first: Doubles
    """(e, r, r): sum over n of W m, rows W's latent dimensions."""
    decay: Doubles | None
    """(e, r, r): what L2 decay inside the gradient has added to `first` where the moments are this factor's own; None: nothing."""
    stored: Doubles | None
    """(e, r, r): sum over n of W z, where the state keeps weights z of its own; None: it keeps none."""
    drift: Doubles
    """(e, r, r): sum over n of u m."""
    noise: Doubles
    """(e, r): sums of sqrt(v)."""
    weight: float
    """Sum of squares of the factor."""
    moment: float
    """Sum of squares of the first moment."""
    cosine: float
    """Between what the factor moved and its last update: 1 after one step, and of a factor that moved straight; NaN where nothing moved."""
    compared: int
    """Numbers that were."""
    sample: Array
    """(<= COMPARED,): the factor's first numbers, to see whether two modules began alike."""
    finite: bool


@dataclass(frozen=True, slots=True)
class Source:
    """Where factors and moments are read from."""

    raw: RawState
    adapter: Adapter
    start: Adapter | None = None
    """An earlier adapter of the run: displacement is then counted from it."""

    @property
    def strip(self) -> int:
        """Numbers of a tall tensor to read at a time."""
        return FAR_STRIP if is_remote(self.raw.source) or is_remote(self.adapter.file) else STRIP

    @property
    def averages_steps(self) -> bool:
        """True where the first moment is an average of divided gradients (ADOPT, CAME, Adafactor): a direction, and no side of balance."""
        spec = OPTIMIZERS.get(self.raw.optimizer)
        return spec is not None and spec.averages == "steps"

    def matrix(self, key: str) -> tuple[int, int]:
        """Return a factor's shape as a matrix: a convolution's A (r, in, kh, kw) is (r, in * kh * kw), its B (out, r, 1, 1) is (out, r)."""
        shape = self.adapter.tensors[key].shape
        return shape[0], math.prod(shape[1:])

    def decay(self, entry: Entry) -> float:
        """Return the weight of the parameter itself in its first moment; see `decay_within`."""
        return decay_within(self.raw.optimizer, self.raw.groups[entry.group].hyper, entry.step)


def moments_of(source: Source, entry: Entry) -> tuple[str | None, str | None]:
    """Return the slots of an entry that hold its first and second moment, element by element; None for one that it does not keep.

    An average of steps (`Source.averages_steps`) is a direction by itself: its second moment is not asked for.
    """
    optimizer = source.raw.optimizer
    first, second = first_moment(entry, "unknown" if source.averages_steps else optimizer), second_moment(entry)
    spec = OPTIMIZERS.get(optimizer)
    if first is None or second is None or entry.slots[first].shape != entry.slots[second].shape or (spec is not None and spec.moment in OTHER_BASIS):
        second = None
    return first, None if source.averages_steps else second


def look(source: Source, unit: Unit, key: str, position: int, buffers: Buffers | None = None, shared: Shared | None = None) -> FactorProducts | None:
    """Read a factor and the moments at a position; None where the position keeps neither a first moment nor weights of the factor's size.

    Args:
        source: the state and the weights.
        unit: the factor's unit.
        key: the factor: `unit.zero` or `unit.other`.
        position: of the state.
        buffers: memory to read into, for whoever looks often.
        shared: what other looks have read, and may ask for again.
    """
    entry, ref = source.raw.entries[position], source.adapter.tensors[key]
    first, second = moments_of(source, entry)
    stored = stored_weights(source.raw, entry, missing=unit.start if key == unit.zero else 0.0)
    if isinstance(stored, Spread) and unit.halved and first is not None:
        stored = None  # of two that began equal one is missing
    if (first is None and stored is None) or entry.numel != ref.numel or unit.group is None:
        return None
    rows, columns = _matrix(source, unit, key)
    zero = key == unit.zero
    tall = unit.is_tall(zero=zero)
    width = (columns if tall else rows) // (unit.heads[0] if zero else 1)
    rank = width // unit.blocks
    kept = min(rank, unit.most) if unit.blocks == 1 else rank
    direction, decay = direction_of(source, entry), source.decay(entry)
    buffers = buffers or Buffers()
    sums = _ProductSums(unit.blocks, kept // 2 if unit.halved else kept, buffers, stored=stored is not None, decay=decay)
    strip = max(1, source.strip // columns)
    cut = tall and unit.blocks == 1 and kept < rank == columns  # only the first columns are multiplied: of several strips at once
    together = max(strip, PIECE // kept) if cut else strip
    # tall: (rows to add up, all experts at once); wide: (the first rows of the only expert, or all rows of each; which one)
    strips = [(min(together, rows - at), None) for at in range(0, rows, together)] if tall else [(kept, expert) for expert in range(unit.blocks)]
    start = source.start.tensors.get(key) if source.start is not None else None
    slots = [
        ref, entry.slots[first] if first else None, entry.slots[second] if second else None,
        start if start is not None and start.shape == ref.shape else None, stored,
    ]  # fmt: skip
    readers: list[RowReader | None] = [
        None if slot is None else Rows(_shaped(slot, ref.shape), columns, strip=strip if tall else 1) for slot in slots
    ]
    if cut:
        readers = [None if each is None else _FirstColumns(each, kept, buffers.rows(7, min(4 * strip, together), columns)) for each in readers]
    width = kept if cut else columns
    if shared is not None and unit.blocks == 1:
        names = (("weight", key), ("first", position), ("second", position), ("start", key), ("stored", position))
        size = (rows, width, columns) if tall else (kept, width, columns)
        readers = [None if each is None else shared.of((name, size), each, *size[:2]) for name, each in zip(names, readers)]
    fold = _differences if unit.halved else None
    constant = unit.start if zero else 0.0
    for count, expert in strips:
        taken = [None if each is None else each.take(count, buffers.rows(i, count, width)) for i, each in enumerate(readers)]
        for parts in _pieces([None if part is None else _latent(part, kept, unit, zero=zero) for part in taken]):
            sums.add(expert, parts, direction, constant=constant, fold=fold)
    return sums.products(all(each.finite for each in readers if each is not None))


class RowReader(Protocol):
    """Hands out the rows of one tensor, float32, in order."""

    @property
    def finite(self) -> bool:
        """False once a number was not."""

    def take(self, count: int, out: Array) -> Array:
        """Return the next rows, (count, columns): in `out`, or where they lie already; nobody writes over those."""


class _FirstColumns:
    """Hands out the first columns of a tensor's rows, all that is multiplied of them; rows are read as many at a time as `strip` has."""

    def __init__(self, rows: RowReader, kept: int, strip: Array) -> None:
        self._rows, self._kept, self._strip = rows, kept, strip

    @property
    def finite(self) -> bool:
        """False once a number was not."""
        return self._rows.finite

    def take(self, count: int, out: Array) -> Array:
        """Return the next rows, (count, kept), in `out`."""
        row = np.dtype((np.void, 4 * self._kept))  # copied as one piece: half of what number by number takes
        wide = self._strip.strides[:1]
        for at in range(0, count, len(self._strip)):
            strip = self._strip[: count - at]
            self._rows.take(len(strip), strip)
            np.ndarray(len(strip), row, out, at * row.itemsize)[:] = np.ndarray(len(strip), row, strip, strides=wide)
        return out


class Shared:
    """Matrices that several looks ask for, each read once: as many of them as take `SHARED` bytes together."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._known: dict[object, tuple[Array, bool]] = {}
        self._left = SHARED

    def of(self, name: object, rows: RowReader, count: int, columns: int) -> RowReader:
        """Return what hands out a matrix (count, columns), by a name that says all that it depends on; `rows` itself where no room is left."""
        if name not in self._known:
            if 4 * count * columns > self._left:
                return rows
            self._left -= 4 * count * columns
            self._known[name] = rows.take(count, np.empty((count, columns), np.float32)), rows.finite
        return _KnownRows(*self._known[name])


class _KnownRows:
    """Hands out the rows of a matrix in memory."""

    def __init__(self, matrix: Array, finite: bool) -> None:
        self._matrix, self.finite = matrix, finite
        self._at = 0

    def take(self, count: int, out: Array) -> Array:
        """Return the next rows as they lie there; `out` stays as it is."""
        del out
        self._at += count
        return self._matrix[self._at - count : self._at]


def _matrix(source: Source, unit: Unit, key: str) -> tuple[int, int]:
    shape = source.adapter.tensors[key].shape
    if unit.flat:
        return 1, math.prod(shape)
    return (math.prod(shape[:-1]), shape[-1]) if unit.folded else source.matrix(key)


def _differences(latent: Array) -> Array:
    """Return (e, r, n) -> (e, r / 2, n): each pair of latent dimensions that began alike, less one another."""
    return latent[:, 0::2] - latent[:, 1::2]


def _shaped(slot: Slot, shape: tuple[int, ...]) -> Slot:
    return slot if slot.shape == shape else slot.with_shape(shape)


def _pieces(parts: Sequence[Array | None]) -> Iterator[list[Array | None]]:
    """Cut arrays (experts, r, n) along n."""
    experts, rank, length = next(part.shape for part in parts if part is not None)
    step = max(COMPARED, PIECE // (experts * rank))
    for at in range(0, length, step):
        yield [None if part is None else part[:, :, at : at + step] for part in parts]


def _latent(part: Array, kept: int, unit: Unit, *, zero: bool) -> Array:
    """Return what was read as (experts, r, n). Expert e of a tall tensor has the columns k * experts + e (peft `ParamWrapper.get_delta_weight`)."""
    if not unit.is_tall(zero=zero):
        return part[None]
    if unit.blocks > 1:
        return part.reshape(len(part), -1, unit.blocks).transpose(2, 1, 0)
    shared, size = unit.heads
    if zero and shared > 1:
        part = part.reshape(len(part), -1, shared, size).transpose(0, 2, 1, 3).reshape(len(part) * shared, -1)
    return np.ascontiguousarray(part[:, :kept]).T[None]


def _square(array: Array) -> float:
    flat = array.ravel(order="K")
    return float(np.dot(flat, flat))


class Direction:
    """The direction of the last update, from the moments."""

    def __init__(self, hyper: Hyper, step: float | None, *, sign: bool) -> None:
        self.betas, self.step, self.eps = betas_of(hyper), step, eps_of(hyper)
        self.sign = sign

    def of(self, m: Array, root: Array | None, out: Array | None = None) -> Array:
        """Return it from m and sqrt(v), any shape; v may not be kept; in `out`, of their shape, where given."""
        if root is not None:
            return statistics.update_direction(m, root, step=self.step, betas=self.betas, eps=self.eps, out=out)
        return np.sign(m) if self.sign else m


def direction_of(source: Source, entry: Entry) -> Direction:
    """Return how an entry's direction is made."""
    return Direction(source.raw.groups[entry.group].hyper, entry.step, sign=source.raw.optimizer in SIGNS)


def _buffer(part: Array, buffers: Buffers, number: int) -> Array:
    """Return buffer `number` for as many numbers as a part (experts, r, n) has, laid out as they are: new memory costs the system a fault a page."""
    experts, rank, length = part.shape
    found = buffers.rows(number, experts * rank, length)
    if part.strides[1] < part.strides[2]:
        return found.reshape(experts, length, rank).transpose(0, 2, 1)
    return found.reshape(part.shape)


Fold = Callable[["Array"], "Array"]


class _ProductSums:
    """Adds strips up."""

    def __init__(self, blocks: int, rank: int, buffers: Buffers, *, stored: bool, decay: float) -> None:
        self._buffers = buffers
        self.of_decay, self.decay = decay, np.zeros((blocks, rank, rank)) if decay else None
        self.update, self.first, self.drift = (np.zeros((blocks, rank, rank)) for _ in range(3))
        self.stored = np.zeros((blocks, rank, rank)) if stored else None
        self.noise = np.zeros((blocks, rank))
        self.weight = self.moment = self.moved = self.length = 0.0
        self.compared = 0
        self.sample: Array = np.zeros(0, np.float32)
        self.finite = True

    def add(self, expert: int | None, parts: list[Array | None], direction: Direction, *, constant: float, fold: Fold | None) -> None:
        """Add W, m, v, the start and the state's own weights, each (experts, r, n) or None."""
        weight, m, v, start, stored = parts
        assert weight is not None
        at = slice(None) if expert is None else slice(expert, expert + 1)
        if m is None:
            m = np.zeros_like(weight)
        root = None
        if v is not None:
            if v.min() < 0:  # no optimizer makes a negative one
                self.finite = False
                v = np.maximum(v, 0)
            root = np.sqrt(v, out=_buffer(v, self._buffers, 5))
        u = direction.of(m, root, _buffer(m, self._buffers, 6))
        began = constant if start is None else start
        moved = weight - began if start is not None or constant else weight
        if fold is not None:
            weight, m, u, moved = fold(weight), fold(m), fold(u), fold(moved)
        if root is not None:
            self.noise[at] += (root if fold is None else root[:, 0::2] + root[:, 1::2]) @ np.ones(root.shape[2], np.float32)
        if not self.sample.size:
            self.sample = weight.reshape(-1)[:COMPARED].copy()
        turned = m.transpose(0, 2, 1)
        self.first[at] += weight @ turned
        if self.decay is not None:
            self.decay[at] += self.of_decay * (weight @ weight.transpose(0, 2, 1))
        self.update[at] += moved @ u.transpose(0, 2, 1)
        self.drift[at] += u @ turned
        if stored is not None and self.stored is not None:
            stored = stored - constant if constant else stored
            self.stored[at] += (weight - constant if constant else weight) @ (stored if fold is None else fold(stored)).transpose(0, 2, 1)
        self.weight += _square(moved if constant or fold is not None else weight)
        self.moved = self.moved + _square(moved) if start is not None else self.weight
        self.moment += _square(m)
        self.length += _square(u)
        self.compared += u.size

    def products(self, finite: bool) -> FactorProducts:
        """Return the sums."""
        parts = (self.update, self.first, self.drift, self.noise, *(part for part in (self.decay, self.stored) if part is not None))
        finite = finite and self.finite and all(bool(np.isfinite(part).all()) for part in parts)
        both = math.sqrt(self.moved * self.length)
        cosine = -float(np.trace(self.update, axis1=1, axis2=2).sum()) / both if both > 0 else math.nan
        sums = self.update, self.first, self.decay, self.stored, self.drift, self.noise, self.weight, self.moment
        return FactorProducts(*sums, cosine, self.compared, self.sample, finite)
