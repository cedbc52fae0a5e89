"""The numbers that the tests compare, gathered per shape class: read once, multiplied once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ostate.core.lora_modules import LoraModule, balance_holds, canonical, modules_of, starts_at_zero
from ostate.core.naming import Adapter, Evidence
from ostate.core.state import Entry, RawState
from ostate.core.tensors import TensorRef

from .. import statistics
from ..profiles import Profile, enough_rows, likeness, module_of
from .base_tensors import base_tensor
from .factor_tables import FactorTable, Precomputed, factor_table
from .read_moments import MomentReader
from .stream_rows import betas_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PairClass:
    """All modules of one pair of shapes, against all positions that could be theirs. k modules, z and f positions.

    The tables are float32; q = blocks * r * r.
    """

    modules: tuple[LoraModule, ...]
    zero_positions: tuple[int, ...]
    other_positions: tuple[int, ...]
    rank: int
    numel: int
    """Elements of the zero factor that displacement is computed from."""
    other_numel: int
    cosine: Array
    """(k, z): displacement against update direction."""
    spread: Array
    """(k, z): the cosine's own null deviation."""
    left: Array
    """(k, z, q): Z^T m."""
    right: Array
    """(k, f, q): m F^T."""
    zero_drift: Array
    """(z, 2, q)."""
    other_drift: Array
    """(f, 2, q)."""
    moved_cosine: Array | None
    """(k, f): the other factor's own displacement, where an earlier checkpoint tells its start."""
    moved_spread: Array | None
    width: int
    """Columns of the zero factor: blocks * rank."""
    unit: float = 1.0
    """What the first moments were multiplied with, so that squares stay within float32."""
    zero_at: Mapping[int, int] = field(default_factory=dict)
    """Column of a zero factor's position."""
    other_at: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unpaired:
    """Keys of one shape that belong to no pair, against all positions of that shape, by displacement from a known start."""

    keys: tuple[str, ...]
    positions: tuple[int, ...]
    numel: int
    known: tuple[bool, ...]
    """By key: True where the start is known."""
    cosine: Array
    spread: Array


@dataclass(frozen=True, slots=True)
class Tables:
    """The numbers of every class of tensors, for any order to be scored by."""

    pairs: tuple[PairClass, ...]
    unpaired: tuple[Unpaired, ...]
    profiles: tuple[Profile, ...]
    keys_of_shape: Mapping[Shape, tuple[str, ...]]
    positions_of_shape: Mapping[Shape, tuple[int, ...]]
    shape_of_key: Mapping[str, Shape]
    reader: MomentReader
    silent: Mapping[str, str] = field(default_factory=dict)
    displaced: bool = True
    """False when the zero factors are not known to have started at zero."""
    balanced: bool = True
    """False when balance cannot hold."""
    precomputed: Mapping[tuple[str, int], Array] = field(default_factory=dict)
    """(zero key, position) -> `factor_tables.features_of`, for the pairs of the claim at hand."""


def widths(adapter: Adapter) -> tuple[int, ...]:
    """Return what to try for `sketch_rows`: first few rows, where a factor is wide, then more of them, or the whole factors."""
    widest = max((min(adapter.tensors[module.other].shape[:2]) for module in modules_of(adapter) if module.blocks == 1), default=0)
    return statistics.sketch_rows_to_try(widest)


def is_decided(found: Evidence, tables: Tables) -> bool:
    """True when every position of a pair is proven: looking closer cannot say more."""
    paired = {position for pair in tables.pairs for position in (*pair.zero_positions, *pair.other_positions)}
    return found.verdict == "verified" and not paired & set(found.undecided)


def overflow_ignored() -> np.errstate:
    """Let damaged numbers near the end of their range overflow: what is not finite tells nothing, and nobody needs a warning of numpy's."""
    return np.errstate(over="ignore", invalid="ignore")


UNMOVED = "every factor that starts at zero is still zero in the adapter: it was saved before the first update"


def gather(
    raw: RawState,
    adapter: Adapter,
    *,
    previous: Adapter | None,
    base: Mapping[str, TensorRef] | None,
    likely: Mapping[int, str] | None = None,
    sketch_rows: int = 0,
) -> Tables:
    """Return the tables; slots are read shape by shape, each once.

    Args:
        raw: the state.
        adapter: the trained weights.
        previous: an earlier adapter of the same run.
        base: the base model's weights, where at hand.
        likely: position -> key of a claim, whose pairs are also prepared for the path form of balance while their numbers are at hand.
        sketch_rows: rows that wide factors are projected to; 0: whole.
    """
    silent: dict[str, str] = {}
    usable = [entry for entry in raw.entries if _usable(entry)]
    if not usable:
        missing = "no position has both exp_avg and exp_avg_sq" if any(e.has_state for e in raw.entries) else "no position has state"
        silent.update(displacement=missing, balance=missing)
    positions, shapes = _classes(usable, adapter)
    keys = {shape: tuple(key for key in adapter.tensors if shapes[key] == shape) for shape in positions}
    modules = modules_of(adapter)
    start, product = starts_at_zero(adapter), balance_holds(adapter)
    if start and previous is None:
        silent["displacement"] = start
    if product is None and len({betas_of(raw.groups[entry.group].hyper)[0] for entry in usable}) > 1:
        product = "beta1 differs between the groups, so the moments of A and B average over different steps"
    if product:
        silent["balance"] = product
    reader = MomentReader(raw, adapter, sketch_rows)
    precomputed: dict[tuple[str, int], Array] = {}
    pairs = _pair_classes(
        reader, previous, _alike(modules, shapes, adapter), positions, shapes, Precomputed(likely or {}, "displacement" not in silent, precomputed)
    )
    paired = {key for pair in pairs for module in pair.modules for key in (module.zero, module.other)}
    if pairs and not any(pair.left.any() for pair in pairs) and not any(pair.cosine.any() for pair in pairs):
        silent["displacement"] = silent["balance"] = UNMOVED
    unpaired = [
        _unpaired(reader, [key for key in keys[shape] if key not in paired], positions[shape], previous, base)
        for shape in positions
        if any(key not in paired for key in keys[shape])
    ]
    return Tables(
        tuple(pairs),
        tuple(unpaired),
        tuple(_profiles(reader, unpaired, pairs)),
        keys,
        positions,
        shapes,
        reader,
        silent,
        displaced="displacement" not in silent,
        balanced="balance" not in silent,
        precomputed=precomputed,
    )


def _usable(entry: Entry) -> bool:
    return (
        "exp_avg" in entry.slots
        and "exp_avg_sq" in entry.slots
        and entry.shape is not None
        and entry.slots["exp_avg"].shape == entry.slots["exp_avg_sq"].shape
    )


def _classes(usable: Sequence[Entry], adapter: Adapter) -> tuple[dict[Shape, tuple[int, ...]], dict[str, Shape]]:
    """Return positions by shape class, and the class of each key. Where only a number of elements is known, that number is the class."""
    flat = {entry.numel for entry in usable if entry.flat}
    positions: dict[Shape, list[int]] = {}
    for entry in usable:
        shape = entry.shape or ()
        positions.setdefault((entry.numel or 0,) if entry.numel in flat else shape, []).append(entry.position)
    shapes = {key: (ref.numel,) if ref.numel in flat else ref.shape for key, ref in adapter.tensors.items()}
    return {shape: tuple(members) for shape, members in positions.items()}, shapes


def _alike(modules: Sequence[LoraModule], shapes: Mapping[str, Shape], adapter: Adapter) -> list[list[LoraModule]]:
    found: dict[object, list[LoraModule]] = {}
    for module in modules:
        stored = adapter.tensors[module.zero].shape, adapter.tensors[module.other].shape
        found.setdefault((stored, module.flipped, module.blocks, shapes[module.zero]), []).append(module)
    return list(found.values())


_Mark = tuple[bool, Shape, Shape, bool, int, bool]
"""Zero factor or the other, class, stored shape, flipped, blocks, earlier values known: factors that are read together."""


def _pair_classes(
    reader: MomentReader,
    previous: Adapter | None,
    classes: Sequence[Sequence[LoraModule]],
    positions: Mapping[Shape, tuple[int, ...]],
    shapes: Mapping[str, Shape],
    precomputed: Precomputed,
) -> list[PairClass]:
    """Return the classes that have positions. Factors of one shape are read once, whatever their modules' other factors are."""
    wanted: dict[_Mark, list[LoraModule]] = {}
    of_class = []
    for members in classes:
        first = members[0]
        holds = previous is not None and _holds(previous, reader.adapter, members)
        marks = [(zero, shapes[key], reader.adapter.tensors[key].shape, first.flipped, first.blocks, holds) for zero, key in _factors(first)]
        if positions.get(shapes[first.zero]):
            of_class.append((members, marks, holds))
            for mark in marks:
                wanted.setdefault(mark, []).extend(members)
    tables = {}
    for mark, members in wanted.items():
        earlier = MomentReader(reader.raw, previous, reader.sketch_rows) if previous is not None and mark[-1] else None
        keys = [module.zero if mark[0] else module.other for module in members]
        tables[mark] = factor_table(reader, earlier, keys, positions.get(shapes[keys[0]], ()), members[0], precomputed)
    return [_pair_class(members, tables[one], tables[two], moved=holds) for members, (one, two), holds in of_class]


def _factors(module: LoraModule) -> tuple[tuple[bool, str], tuple[bool, str]]:
    return (True, module.zero), (False, module.other)


def _pair_class(members: Sequence[LoraModule], one: FactorTable, two: FactorTable, *, moved: bool) -> PairClass:
    """Join the tables of two factors; the first moments of both in the unit of the zero factor. The arrays are theirs, not copies."""
    zero, other = _run([one.row[module.zero] for module in members]), _run([two.row[module.other] for module in members])
    scale = np.float32(one.unit / two.unit)
    right = two.products[other]
    right *= scale
    return PairClass(
        modules=tuple(members),
        zero_positions=one.positions,
        other_positions=two.positions,
        rank=one.width // members[0].blocks,
        numel=one.numel,
        other_numel=two.numel,
        cosine=one.cosine[zero],
        spread=one.spread[zero],
        left=one.products[zero],
        right=right,
        zero_drift=one.drift,
        other_drift=two.drift * scale,
        moved_cosine=two.cosine[other] if moved else None,
        moved_spread=two.spread[other] if moved else None,
        width=one.width,
        unit=one.unit,
        zero_at={position: column for column, position in enumerate(one.positions)},
        other_at={position: column for column, position in enumerate(two.positions)},
    )


def _run(rows: list[int]) -> slice:
    """Return rows of a factor table as a slice: a class's modules were put there one after the other."""
    return slice(rows[0], rows[0] + len(rows))


def _holds(previous: Adapter, adapter: Adapter, members: Sequence[LoraModule]) -> bool:
    keys = [key for module in members for key in (module.zero, module.other)]
    return all(key in previous.tensors and previous.tensors[key].shape == adapter.tensors[key].shape for key in keys)


def _unpaired(
    reader: MomentReader, keys: Sequence[str], positions: tuple[int, ...], previous: Adapter | None, base: Mapping[str, TensorRef] | None
) -> Unpaired:
    """Return the displacement of keys outside pairs, zero rows where the start is not known."""
    starts = [start_of(key, reader.adapter, previous, base) for key in keys]
    numel = reader.adapter.tensors[keys[0]].numel
    cosine = np.zeros((len(keys), len(positions)), np.float32)
    spread = np.full_like(cosine, 1 / np.sqrt(max(numel, 1)))
    if any(start is not None for start in starts):
        u = np.stack([reader.direction(position, keys[0]) for position in positions])
        for row, (key, start) in enumerate(zip(keys, starts)):
            if start is None:
                continue
            moved = np.asarray(reader.adapter.tensors[key].read(), np.float32).reshape(-1) - start.reshape(-1)
            cosine[row], spread[row] = statistics.displacement_elementwise(moved, u)
    return Unpaired(tuple(keys), positions, numel, tuple(start is not None for start in starts), cosine, spread)


def _profiles(reader: MomentReader, unpaired: Sequence[Unpaired], pairs: Sequence[PairClass]) -> Iterator[Profile]:
    """Yield the profiles of vectors against the zero factors of their modules, class by class."""
    for each in unpaired:
        for pair in pairs:
            tied = [(key, module.zero) for key in each.keys if (module := module_of(key, pair.modules)) is not None]
            rows = reader.adapter.tensors[pair.modules[0].zero].numel // pair.width
            if tied and each.numel == rows and enough_rows(rows):
                vectors = np.stack([reader.second_moment(position).reshape(-1) for position in each.positions])
                first = pair.modules[0]
                shape = reader.adapter.tensors[first.zero].shape
                factors = np.stack(
                    [
                        canonical(reader.second_moment(position).reshape(shape), zero=True, flipped=first.flipped).sum(axis=0)
                        for position in pair.zero_positions
                    ]
                )
                yield Profile(tuple(tied), each.positions, pair.zero_positions, likeness(vectors, factors))


def start_of(key: str, adapter: Adapter, previous: Adapter | None, base: Mapping[str, TensorRef] | None) -> Array | None:
    """Return where a tensor outside the pairs is known to have started: the earlier checkpoint's value, the base model's, or zero; else None."""
    shape = adapter.tensors[key].shape
    if previous is not None and key in previous.tensors and previous.tensors[key].shape == shape:
        return np.asarray(previous.tensors[key].read(), np.float32)
    if re.search(r"lora_B(\.[^.]+)?\.bias$", key):
        return np.zeros(shape, np.float32)
    if not base:
        return None
    if key.endswith(("lora_magnitude_vector", "lora_magnitude_vector.weight")):
        weight = base_tensor(key.partition("lora_magnitude_vector")[0] + "weight", base)
        norms = _norms(weight, shape) if weight is not None else None
        return norms.reshape(shape) if norms is not None else None
    ref = base_tensor(key, base)
    return np.asarray(ref.read(), np.float32) if ref is not None and ref.shape == shape else None


def _norms(weight: TensorRef, shape: Shape) -> Array | None:
    """Return the norm of each output row, where a DoRA magnitude starts (peft lora/dora.py `get_weight_norm`); of columns for Conv1D."""
    if len(weight.shape) != 2:
        return None
    values = np.asarray(weight.read(), np.float32)
    fitting = [axis for axis, size in ((1, weight.shape[0]), (0, weight.shape[1])) if size == int(np.prod(shape))]
    return np.sqrt((values * values).sum(axis=fitting[0])) if fitting else None
