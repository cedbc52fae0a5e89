"""One look at a LoRA module: its two factors and the moments at two positions, each read once, and the r x r numbers that are kept of them.

A factor of a module is read as a matrix of r latent dimensions by n. Wide ones, stored (r, n), need only their first rows; tall ones, stored
(n, r), are read a strip at a time. Of a rank above DIMENSIONS the first so many latent dimensions are compared: they already say more than
any verdict asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ostate.core.lora_modules import Module
from ostate.core.naming import Adapter
from ostate.core.state import Entry, Hyper, RawState
from ostate.core.tensors import Slot
from ostate.optimizers import OPTIMIZERS
from ostate.optimizers.slots import first_moment, second_moment

from . import statistics as laws
from .starts import COMPARED
from .tables.stream_rows import Rows, betas_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]
    Doubles = NDArray[np.float64]

DIMENSIONS = 16
"""Latent dimensions compared: four blocks of four say 10 digits of a module alone."""
STRIP = 1 << 19
"""Numbers of a tall tensor read at a time."""
OTHER_BASIS = frozenset({"rotated", "projected", "blocks"})
"""Forms of second moments that are not told element by element in the parameter's own basis."""
SIGNS = frozenset({"lion", "lion_bnb", "signsgd"})
"""Optimizers whose update is the sign of a mean of gradients."""


class Side(NamedTuple):
    """What is left of one factor and the moments at one position; e experts (1 elsewhere), r latent dimensions; float64."""

    update: Doubles
    """(e, r, r): sum over n of W u, rows W's latent dimensions."""
    first: Doubles
    """(e, r, r): sum over n of W m, rows W's latent dimensions."""
    drift: Doubles
    """(e, r, r): sum over n of u m."""
    noise: Doubles
    """(e, r): sums of sqrt(v)."""
    weight: float
    """Sum of squares of the factor."""
    moment: float
    """Sum of squares of the first moment."""
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

    def matrix(self, key: str) -> tuple[int, int]:
        """Return a factor's shape as a matrix: a convolution's A (r, in, kh, kw) is (r, in * kh * kw), its B (out, r, 1, 1) is (out, r)."""
        shape = self.adapter.tensors[key].shape
        return shape[0], int(np.prod(shape[1:], dtype=np.int64))

    def decay(self, entry: Entry) -> float:
        """Return the weight of the parameter itself in its first moment: wd * (1 - beta1^t) where decay acts through the gradient, else 0."""
        hyper = self.raw.groups[entry.group].hyper
        spec = OPTIMIZERS.get(self.raw.optimizer)
        if spec is None or spec.decay != "l2" or hyper.get("decoupled_weight_decay") is True:
            return 0.0
        remembered = 1.0 - betas_of(hyper)[0] ** entry.step if entry.step else 1.0
        return float(hyper.get("weight_decay") or 0.0) * float(remembered)


def moments_of(source: Source, entry: Entry) -> tuple[str | None, str | None]:
    """Return the slots of an entry that hold its first and second moment, element by element; None for one that it does not keep."""
    first, second = first_moment(entry), second_moment(entry)
    spec = OPTIMIZERS.get(source.raw.optimizer)
    if first is None or second is None or entry.slots[first].shape != entry.slots[second].shape or (spec is not None and spec.moment in OTHER_BASIS):
        second = None
    return first, second


def look(source: Source, module: Module, key: str, position: int) -> Side | None:
    """Read a factor and the moments at a position; None where the position keeps no first moment of the factor's size.

    Args:
        source: the state and the weights.
        module: the factor's module.
        key: the factor: `module.zero` or `module.other`.
        position: of the state.
    """
    entry, ref = source.raw.entries[position], source.adapter.tensors[key]
    first, second = moments_of(source, entry)
    if first is None or entry.numel != ref.numel:
        return None
    rows, columns = source.matrix(key)
    tall = (key == module.zero) != module.flipped
    width = columns if tall else rows
    rank = width // module.blocks
    kept = min(rank, DIMENSIONS) if module.blocks == 1 else rank
    sums = _Sums(module.blocks, kept)
    strip = max(1, STRIP // columns)
    # tall: (rows to read, all experts at once); wide: (the first rows of the only expert, or all rows of each; which one)
    strips = [(min(strip, rows - at), None) for at in range(0, rows, strip)] if tall else [(kept, expert) for expert in range(module.blocks)]
    start = source.start.tensors.get(key) if source.start is not None else None
    slots = [ref, entry.slots[first], entry.slots[second] if second else None, start if start is not None and start.shape == ref.shape else None]
    readers = [_reader(slot, ref.shape, columns, tall) for slot in slots]
    direction = _Direction(source.raw.groups[entry.group].hyper, entry.step, sign=source.raw.optimizer in SIGNS)
    for count, expert in strips:
        parts = [None if rows is None else _latent(rows.take(count), kept, module.blocks, tall=tall) for rows in readers]
        sums.add(expert, parts, direction, decay=source.decay(entry))
    return sums.side(all(rows.finite for rows in readers if rows is not None))


def _reader(slot: Slot | None, shape: tuple[int, ...], columns: int, tall: bool) -> Rows | None:
    if slot is None:
        return None
    shaped = slot if slot.shape == shape else slot.with_shape(shape)
    return Rows(shaped, columns, strip=max(1, STRIP // columns) if tall else 1)


def _latent(part: Array, kept: int, blocks: int, *, tall: bool) -> Array:
    """Return what was read as (experts, r, n). Expert e of a tall tensor has the columns k * experts + e (peft `ParamWrapper.get_delta_weight`)."""
    if not tall:
        return part[None]
    if blocks == 1:
        return np.ascontiguousarray(part[:, :kept].T)[None]
    return part.reshape(len(part), -1, blocks).transpose(2, 1, 0)


class _Direction:
    """The direction of the last update, from the moments."""

    def __init__(self, hyper: Hyper, step: float | None, *, sign: bool) -> None:
        self.betas, self.step, self.eps = betas_of(hyper), step, _number(hyper.get("eps"), 1e-8)
        self.sign = sign

    def of(self, m: Array, root: Array | None) -> Array:
        if root is not None:
            return laws.update_direction(m, root, step=self.step, betas=self.betas, eps=self.eps)
        return np.sign(m) if self.sign else m


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, (int, float)) and value else default


class _Sums:
    """Adds strips up."""

    def __init__(self, blocks: int, rank: int) -> None:
        self.update, self.first, self.drift = (np.zeros((blocks, rank, rank)) for _ in range(3))
        self.noise = np.zeros((blocks, rank))
        self.weight = self.moment = 0.0
        self.sample: Array = np.zeros(0, np.float32)
        self.finite = True

    def add(self, expert: int | None, parts: list[Array | None], direction: _Direction, *, decay: float) -> None:
        """Add W, m, v and the start, each (experts, r, n) or None."""
        weight, m, v, start = parts
        assert weight is not None
        assert m is not None
        at = slice(None) if expert is None else slice(expert, expert + 1)
        root = None
        if v is not None:
            if not (v >= 0).all():  # no optimizer makes a negative one
                self.finite = False
                v = np.maximum(v, 0)
            root = np.sqrt(v)
            self.noise[at] += root.sum(axis=2)
        u = direction.of(m, root)
        if not self.sample.size:
            self.sample = weight.reshape(-1)[:COMPARED].copy()
        turned = m.transpose(0, 2, 1)
        self.first[at] += weight @ turned
        if decay:
            self.first[at] -= decay * (weight @ weight.transpose(0, 2, 1))
        self.update[at] += (weight if start is None else weight - start) @ u.transpose(0, 2, 1)
        self.drift[at] += u @ turned
        self.weight += float(np.vdot(weight, weight))
        self.moment += float(np.vdot(m, m))

    def side(self, finite: bool) -> Side:
        """Return the sums."""
        whole = all(np.isfinite(part).all() for part in (self.update, self.first, self.drift, self.noise))
        return Side(self.update, self.first, self.drift, self.noise, self.weight, self.moment, self.sample, finite and self.finite and whole)
