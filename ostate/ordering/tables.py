"""The numbers that the laws compare, gathered per shape class: read once, multiplied once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..model import Adapter, Entry, RawState, TensorRef
from . import laws
from .modules import Module, balance_holds, canonical, modules_of, starts_at_zero

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PairClass:
    """All modules of one pair of shapes, against all positions that could be theirs. k modules, z and f positions.

    The tables are float32; q = blocks * r * r.
    """

    modules: tuple[Module, ...]
    zero_positions: tuple[int, ...]
    other_positions: tuple[int, ...]
    rank: int
    numel: int
    """Elements of the zero factor."""
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


@dataclass(frozen=True, slots=True)
class Lone:
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
    """All that is known before any order is looked at."""

    pairs: tuple[PairClass, ...]
    lone: tuple[Lone, ...]
    keys_of_shape: Mapping[Shape, tuple[str, ...]]
    positions_of_shape: Mapping[Shape, tuple[int, ...]]
    shape_of_key: Mapping[str, Shape]
    silent: Mapping[str, str] = field(default_factory=dict)
    displaced: bool = True
    """False when the zero factors are not known to have started at zero."""


def gather(raw: RawState, adapter: Adapter, *, previous: Adapter | None, base: Mapping[str, TensorRef] | None) -> Tables:
    """Return the tables; slots are read class by class."""
    silent: dict[str, str] = {}
    usable = [entry for entry in raw.entries if _usable(entry)]
    if not usable:
        missing = "no position keeps exp_avg and exp_avg_sq" if any(e.has_state for e in raw.entries) else "no position has state"
        silent.update(displacement=missing, balance=missing)
    positions, shapes = _classes(usable, adapter)
    keys = {shape: tuple(key for key in adapter.tensors if shapes[key] == shape) for shape in positions}
    modules = modules_of(adapter)
    start, product = starts_at_zero(adapter), balance_holds(adapter)
    if start:
        silent["displacement"] = start
    if product:
        silent["balance"] = product
    reader = _Reader(raw, adapter)
    paired: set[str] = set()
    pairs = []
    for members in _alike(modules, shapes, adapter):
        zero, other = positions.get(shapes[members[0].zero], ()), positions.get(shapes[members[0].other], ())
        if zero and other:
            pairs.append(_pair_class(reader, members, zero, other))
            paired |= {key for module in members for key in (module.zero, module.other)}
    lone = [
        _lone(reader, [key for key in keys[shape] if key not in paired], positions[shape], previous, base)
        for shape in positions
        if any(key not in paired for key in keys[shape])
    ]
    return Tables(tuple(pairs), tuple(lone), keys, positions, shapes, silent, start is None)


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


def _alike(modules: Sequence[Module], shapes: Mapping[str, Shape], adapter: Adapter) -> list[list[Module]]:
    found: dict[object, list[Module]] = {}
    for module in modules:
        stored = adapter.tensors[module.zero].shape, adapter.tensors[module.other].shape
        found.setdefault((stored, module.flipped, module.blocks, shapes[module.zero]), []).append(module)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads moments under the shape of the key that they are compared with."""

    raw: RawState
    adapter: Adapter

    def moments(self, positions: Sequence[int], like: str, module: Module | None) -> tuple[Array, Array, Array]:
        """Return (m, sqrt(v), u) of the positions as if they belonged to the key `like`, each stacked, float32."""
        shape = self.adapter.tensors[like].shape
        parts: list[tuple[Array, ...]] = []
        for position in positions:
            entry = self.raw.entries[position]
            m = np.asarray(entry.slots["exp_avg"].with_shape(shape).read(), np.float32)
            v = np.asarray(entry.slots["exp_avg_sq"].with_shape(shape).read(), np.float32)
            hyper = self.raw.groups[entry.group].hyper
            betas = hyper.get("betas") or (0.9, 0.999)
            u = laws.update_direction(m, v, step=entry.step, betas=(float(betas[0]), float(betas[1])), eps=float(hyper.get("eps", 1e-8)))
            found = (m, np.sqrt(np.maximum(v, 0)), u)
            if module is not None:
                found = tuple(canonical(array, flipped=module.flipped) for array in found)
            parts.append(found)
        m, root, u = (np.stack(part) for part in zip(*parts))
        return m, root, u

    def weights(self, keys: Sequence[str], module: Module) -> Array:
        """Return tensors of the adapter in canonical form, stacked, float32."""
        return np.stack([canonical(np.asarray(self.adapter.tensors[key].read(), np.float32), flipped=module.flipped) for key in keys])


def _pair_class(reader: _Reader, members: Sequence[Module], zero: tuple[int, ...], other: tuple[int, ...]) -> PairClass:
    first = members[0]
    Z = reader.weights([module.zero for module in members], first)
    m, root, u = reader.moments(zero, first.zero, first)
    unit = np.float32(1 / (float(np.abs(m).max()) or 1.0))
    m, root = m * unit, root * unit
    cosine, spread = laws.displacement(Z, u)
    left = laws.left_products(Z, m, first.blocks)
    zero_drift = laws.zero_drift(m, root, u, first.blocks)
    numel = Z[0].size
    F = reader.weights([module.other for module in members], first)
    m, root, u = reader.moments(other, first.other, first)
    m, root = m * unit, root * unit
    right = laws.right_products(F, m, first.blocks)
    other_drift = laws.other_drift(m, root, u, first.blocks)
    rank = F.shape[1] // first.blocks
    return PairClass(tuple(members), zero, other, rank, numel, cosine, spread, left, right, zero_drift, other_drift)


def _lone(reader: _Reader, keys: Sequence[str], positions: tuple[int, ...], previous: Adapter | None, base: Mapping[str, TensorRef] | None) -> Lone:
    """Return the displacement of keys outside pairs, zero rows where the start is not known."""
    starts = [start_of(key, reader.adapter, previous, base) for key in keys]
    numel = reader.adapter.tensors[keys[0]].numel
    cosine = np.zeros((len(keys), len(positions)), np.float32)
    spread = np.full_like(cosine, 1 / np.sqrt(max(numel, 1)))
    if any(start is not None for start in starts):
        _, _, u = reader.moments(positions, keys[0], None)
        u = u.reshape(len(positions), -1)
        for row, (key, start) in enumerate(zip(keys, starts)):
            if start is None:
                continue
            moved = np.asarray(reader.adapter.tensors[key].read(), np.float32).reshape(-1) - start.reshape(-1)
            cosine[row], spread[row] = laws.displacement_elementwise(moved, u)
    return Lone(tuple(keys), positions, numel, tuple(start is not None for start in starts), cosine, spread)


def start_of(key: str, adapter: Adapter, previous: Adapter | None, base: Mapping[str, TensorRef] | None) -> Array | None:
    """Return where a tensor outside the pairs is known to have started: the earlier checkpoint's value, the base model's, or zero; else None."""
    shape = adapter.tensors[key].shape
    if previous is not None and key in previous.tensors and previous.tensors[key].shape == shape:
        return np.asarray(previous.tensors[key].read(), np.float32)
    if re.search(r"lora_B(\.[^.]+)?\.bias$", key):
        return np.zeros(shape, np.float32)
    ref = base_tensor(key, base) if base else None
    return np.asarray(ref.read(), np.float32) if ref is not None and ref.shape == shape else None


def base_tensor(key: str, base: Mapping[str, TensorRef]) -> TensorRef | None:
    """Return the base model's tensor that a `modules_to_save` or bias key was copied from, or None."""
    bare = key.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".modules_to_save.", ".")
    for form in (key, bare, f"model.{bare}", bare.removeprefix("model.")):
        if form in base:
            return base[form]
    return None
