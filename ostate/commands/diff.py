"""Compare two states: what only one has, what differs, and by how much. The `diff` command as a function."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ostate.core.brief import brief
from ostate.core.files import announce, new_buffer, watched
from ostate.core.names import plain_names, twins
from ostate.core.naming import NamedState
from ostate.core.plain import plain_document
from ostate.core.state import Hyper, RawState
from ostate.core.stream import side_by_side, stream
from ostate.core.tensors import Slot
from ostate.errors import ReadError, refusing
from ostate.read import named_file
from ostate.store import load

from .inspect import open_state, stored_bytes

if TYPE_CHECKING:
    from ostate.core.documents import DiffDocument

IGNORED = frozenset({"foreach", "fused", "capturable", "differentiable"})
"""Hyperparameters that change how torch computes, not what."""
Buffers = tuple[memoryview, memoryview]
_PIECE = 1 << 17
"""Elements read at a time of each side."""
_SUMMED = 1 << 14
"""Numbers added up at a time: as float64 of both sides they fill half a core's own cache."""


@dataclass(frozen=True, slots=True)
class DiffSide:
    """One parameter of one side."""

    name: str
    shape: tuple[int, ...] | None
    step: float | None
    slots: Mapping[str, Slot]
    hyper: Hyper


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Gap:
    """How far one slot of one parameter lies apart."""

    name: str
    slot: str
    equal: bool
    """Bit for bit."""
    relative: float
    """|b - a| / |a| (Euclidean); inf where a is zero and b is not; nan where either is not finite."""
    cosine: float
    """Between a and b as vectors; 1 where they are equal, nan where one is zero."""

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Difference:
    """What two states have in common, and what not."""

    a: str
    b: str
    matched_by: str
    """`name` or `position`."""
    matched: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    shapes: tuple[tuple[str, tuple[int, ...] | None, tuple[int, ...] | None], ...]
    slots: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]
    """(name, slots only a has, slots only b has)."""
    steps: tuple[tuple[str, float | None, float | None], ...]
    hyper: tuple[tuple[str, object, object, int], ...]
    """(key, a's value, b's value, how many parameters)."""
    gaps: tuple[Gap, ...]
    """Of every slot compared, the widest first."""
    cold_a: bool | None
    """True when all moments are zero; None: numbers were not read."""
    cold_b: bool | None

    def __repr__(self) -> str:
        return brief(self)

    @property
    def same(self) -> bool:
        """True when nothing differs; numbers count where they were read."""
        apart = (self.only_a, self.only_b, self.shapes, self.slots, self.steps, self.hyper)
        return not any(apart) and all(gap.equal for gap in self.gaps)


@refusing
def diff(
    a: str | os.PathLike[str], b: str | os.PathLike[str], *, values: bool = True, progress: Callable[[int, int], None] | None = None
) -> Difference:
    """Compare two states in any layout.

    Args:
        a: a named file, a state file, or a checkpoint folder.
        b: the same.
        values: read every number of both.
        progress: called with (bytes read, about how many there are).

    Raises:
        ReadError: one cannot be read, or the two have nothing to be matched by.
    """
    with watched(progress):
        return _difference(os.fsdecode(a), os.fsdecode(b), values=values)


def _difference(a: str, b: str, *, values: bool) -> Difference:
    one_state, other_state = _open(a), _open(b)
    ours, theirs, by = _matched(one_state, other_state, a, b)
    announce(lambda: stored_bytes(one_state) + stored_bytes(other_state))
    common = [name for name in ours if name in theirs]
    pairs = [(ours[name], theirs[name]) for name in common]
    gaps: list[Gap] = []
    cold = [True, True]
    buffers = new_buffer(8 * _PIECE), new_buffer(8 * _PIECE)
    for one, other in pairs if values else ():
        for slot in one.slots:
            if slot in other.slots and one.slots[slot].shape == other.slots[slot].shape:
                gap, zero_a, zero_b = _gap(one.name, slot, one.slots[slot], other.slots[slot], buffers)
                gaps.append(gap)
                cold = [cold[0] and zero_a, cold[1] and zero_b]
    return Difference(
        a=a,
        b=b,
        matched_by=by,
        matched=len(common),
        only_a=tuple(name for name in ours if name not in theirs),
        only_b=tuple(name for name in theirs if name not in ours),
        shapes=tuple((x.name, x.shape, y.shape) for x, y in pairs if x.shape != y.shape),
        slots=tuple(
            (x.name, tuple(sorted(set(x.slots) - set(y.slots))), tuple(sorted(set(y.slots) - set(x.slots))))
            for x, y in pairs
            if set(x.slots) != set(y.slots)
        ),
        steps=tuple((x.name, x.step, y.step) for x, y in pairs if x.step != y.step),
        hyper=_hyper(pairs),
        gaps=tuple(sorted(gaps, key=_width, reverse=True)),
        cold_a=cold[0] if gaps else None,
        cold_b=cold[1] if gaps else None,
    )


def _open(path: str) -> RawState | NamedState:
    return load(path) if named_file.is_named(path) else open_state(path)


def _matched(a: RawState | NamedState, b: RawState | NamedState, a_path: str, b_path: str) -> tuple[dict[str, DiffSide], dict[str, DiffSide], str]:
    """Return both sides by name where both have names, else by position."""
    ours, theirs = _by_name(a), _by_name(b)
    if ours is not None and theirs is not None:
        return ours, theirs, "name"
    ours, theirs = _by_position(a), _by_position(b)
    if ours is None or theirs is None:
        path = a_path if ours is None else b_path
        raise ReadError(
            "one state has names, the other positions, and its names do not say where they stood", where=path, fix="repair the other first"
        )
    return ours, theirs, "position"


def _by_name(state: RawState | NamedState) -> dict[str, DiffSide] | None:
    if isinstance(state, NamedState):
        return {name: DiffSide(name, p.shape, p.step, p.slots, state.hyper(name)) for name, p in state.parameters.items()}
    held = [entry for entry in state.entries if entry.has_state]
    if not held or any(entry.name is None for entry in held):
        return None
    hyper = {group.index: group.hyper for group in state.groups}
    names = plain_names([entry.name or "" for entry in held])
    if same := twins(names):
        raise ReadError(f"two positions are called {same[0]!r}", where=state.source, fix="save the state again under names of their own")
    return {name: DiffSide(name, entry.shape, entry.step, entry.slots, hyper.get(entry.group, {})) for name, entry in zip(names, held)}


def _by_position(state: RawState | NamedState) -> dict[str, DiffSide] | None:
    if isinstance(state, NamedState):
        if any(parameter.position is None for parameter in state.parameters.values()):
            return None
        named = sorted(state.parameters.values(), key=lambda p: p.position or 0)
        return {f"position {p.position}": DiffSide(f"position {p.position}", p.shape, p.step, p.slots, state.hyper(p.name)) for p in named}
    hyper = {group.index: group.hyper for group in state.groups}
    items = (DiffSide(f"position {e.position}", e.shape, e.step, e.slots, hyper.get(e.group, {})) for e in state.entries if e.has_state)
    return {item.name: item for item in items}


def _hyper(pairs: list[tuple[DiffSide, DiffSide]]) -> tuple[tuple[str, object, object, int], ...]:
    differing: dict[tuple[str, str], tuple[str, object, object]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for one, other in pairs:
        for key in sorted((set(one.hyper) | set(other.hyper)) - IGNORED):
            x, y = plain_document(one.hyper.get(key)), plain_document(other.hyper.get(key))
            if x != y:
                differing[key, repr((x, y))] = key, x, y
                counts[key, repr((x, y))] += 1
    return tuple((*differing[row], count) for row, count in counts.most_common())


def _gap(name: str, slot: str, a: Slot, b: Slot, buffers: Buffers) -> tuple[Gap, bool, bool]:
    """Return how far two slots lie apart, and whether each is all zero. Only what differs is read twice."""
    zero = True
    for x, y in side_by_side(stream(a, buffers[0]), stream(b, buffers[1])):
        if not _same(x, y):
            return _apart(name, slot, a, b, buffers)
        zero = zero and not x.any()
    return Gap(name=name, slot=slot, equal=True, relative=0.0, cosine=math.nan if zero else 1.0), zero, zero


def _apart(name: str, slot: str, a: Slot, b: Slot, buffers: Buffers) -> tuple[Gap, bool, bool]:
    """Add up, in float64, what the distance and the angle between two slots that differ are made of."""
    dot = norm_a = norm_b = apart = 0.0
    for x, y in side_by_side(stream(a, buffers[0]), stream(b, buffers[1])):
        if np.iscomplexobj(x) or np.iscomplexobj(y):  # two real numbers each: what is added up comes to the same
            x, y = (np.asarray(one, np.complex128).view(np.float64) for one in (x, y))
        with np.errstate(invalid="ignore", over="ignore"):
            for at in range(0, x.size, _SUMMED):
                left = x[at : at + _SUMMED].astype(np.float64)
                right = y[at : at + _SUMMED].astype(np.float64)
                norm_a += float(left @ left)
                norm_b += float(right @ right)
                dot += float(left @ right)
                left -= right
                apart += float(left @ left)
    relative = 0.0 if apart == 0 else math.inf if norm_a == 0 else math.sqrt(apart / norm_a)
    cosine = dot / math.sqrt(norm_a) / math.sqrt(norm_b) if norm_a > 0 and norm_b > 0 else math.nan
    return Gap(name=name, slot=slot, equal=False, relative=relative, cosine=cosine), norm_a == 0, norm_b == 0


def _same(x: np.ndarray, y: np.ndarray) -> bool:
    """True when two chunks are of one type and hold the same bits."""
    if x.dtype != y.dtype:
        return False
    bits = "u8" if x.flags.c_contiguous and y.flags.c_contiguous and x.nbytes % 8 == 0 else f"u{x.itemsize}"
    return bool((x.view(bits) == y.view(bits)).all())


def _width(gap: Gap) -> tuple[bool, float]:
    return not gap.equal, math.inf if math.isnan(gap.relative) else gap.relative


def as_document(found: Difference) -> DiffDocument:
    """Return the JSON document that schemas/diff-v1.schema.json describes."""
    differing = [gap for gap in found.gaps if not gap.equal]
    return {
        "document": "ostate-diff",
        "version": 1,
        "a": found.a,
        "b": found.b,
        "same": found.same,
        "matched_by": found.matched_by,
        "matched": found.matched,
        "only_a": list(found.only_a),
        "only_b": list(found.only_b),
        "shapes": [{"name": name, "a": plain_document(x), "b": plain_document(y)} for name, x, y in found.shapes],
        "slots": [{"name": name, "only_a": list(x), "only_b": list(y)} for name, x, y in found.slots],
        "steps": [{"name": name, "a": plain_document(x), "b": plain_document(y)} for name, x, y in found.steps],
        "hyper": [{"key": key, "a": x, "b": y, "parameters": count} for key, x, y, count in found.hyper],
        "compared": len(found.gaps),
        "equal": len(found.gaps) - len(differing),
        "values": [{"name": g.name, "slot": g.slot, "relative": plain_document(g.relative), "cosine": plain_document(g.cosine)} for g in differing],
        "cold_a": found.cold_a,
        "cold_b": found.cold_b,
    }
