"""The numbers that the laws compare, gathered per shape class: read once, multiplied once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ostate.model import Adapter, Entry, Hyper, RawState, TensorRef
from ostate.optimizers import OPTIMIZERS
from ostate.ordering import laws
from ostate.ordering.modules import Module, balance_holds, canonical, modules_of, starts_at_zero
from ostate.ordering.profiles import Profile, enough_rows, likeness, module_of

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
    known: dict[tuple[int, int, bool], Array] = field(default_factory=dict)
    """Residuals once computed."""
    unit: float = 1.0
    """What the first moments were multiplied with, so that squares stay within float32."""


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
    profiles: tuple[Profile, ...]
    keys_of_shape: Mapping[Shape, tuple[str, ...]]
    positions_of_shape: Mapping[Shape, tuple[int, ...]]
    shape_of_key: Mapping[str, Shape]
    reader: Reader
    silent: Mapping[str, str] = field(default_factory=dict)
    displaced: bool = True
    """False when the zero factors are not known to have started at zero."""
    balanced: bool = True
    """False when balance cannot hold."""


UNMOVED = "every factor that starts at zero is still zero in the adapter: it was saved before the first update"


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
    if start and previous is None:
        silent["displacement"] = start
    if product is None and len({betas_of(raw.groups[entry.group].hyper)[0] for entry in usable}) > 1:
        product = "beta1 differs between the groups, so the two sides average over different steps"
    if product:
        silent["balance"] = product
    reader = Reader(raw, adapter)
    paired: set[str] = set()
    pairs = []
    for members in _alike(modules, shapes, adapter):
        zero, other = positions.get(shapes[members[0].zero], ()), positions.get(shapes[members[0].other], ())
        if zero:
            pairs.append(_pair_class(reader, members, zero, other, previous))
            paired |= {key for module in members for key in (module.zero, module.other)}
    if pairs and not any(pair.left.any() for pair in pairs) and not any(pair.cosine.any() for pair in pairs):
        silent["displacement"] = silent["balance"] = UNMOVED
    lone = [
        _lone(reader, [key for key in keys[shape] if key not in paired], positions[shape], previous, base)
        for shape in positions
        if any(key not in paired for key in keys[shape])
    ]
    return Tables(
        tuple(pairs),
        tuple(lone),
        tuple(_profiles(reader, lone, pairs)),
        keys,
        positions,
        shapes,
        reader,
        silent,
        displaced="displacement" not in silent,
        balanced="balance" not in silent,
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


def _alike(modules: Sequence[Module], shapes: Mapping[str, Shape], adapter: Adapter) -> list[list[Module]]:
    found: dict[object, list[Module]] = {}
    for module in modules:
        stored = adapter.tensors[module.zero].shape, adapter.tensors[module.other].shape
        found.setdefault((stored, module.flipped, module.blocks, shapes[module.zero]), []).append(module)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Moments:
    """First moment, root of the second, update direction; one shape, float32."""

    m: Array
    root: Array
    u: Array


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads moments under the shape of the key that they are compared with."""

    raw: RawState
    adapter: Adapter

    def moments(self, position: int, like: str, module: Module | None, *, zero: bool = False) -> Moments:
        """Return the moments of a position as if it belonged to the key `like`; zeros where they are not finite."""
        shape = self.adapter.tensors[like].shape
        entry = self.raw.entries[position]
        m, v = (np.asarray(entry.slots[slot].with_shape(shape).read(), np.float32) for slot in ("exp_avg", "exp_avg_sq"))
        if not (np.isfinite(m).all() and np.isfinite(v).all()):
            m, v = np.zeros_like(m), np.zeros_like(v)
        hyper = self.raw.groups[entry.group].hyper
        root = np.sqrt(np.maximum(v, 0))
        u = laws.update_direction(m, root, step=entry.step, betas=betas_of(hyper), eps=float(hyper.get("eps") or 1e-8))
        if module is None:
            return Moments(m, root, u)
        return Moments(*(canonical(array, zero=zero, flipped=module.flipped) for array in (m, root, u)))

    def second_moment(self, position: int) -> Array:
        """Return v of a position, float32."""
        return np.asarray(self.raw.entries[position].slots["exp_avg_sq"].read(), np.float32)

    def weight(self, key: str, module: Module, *, zero: bool) -> Array:
        """Return a factor of the adapter in canonical form, (w, n), float32; zeros where it is not finite."""
        values = np.asarray(self.adapter.tensors[key].read(), np.float32)
        return canonical(values if np.isfinite(values).all() else np.zeros_like(values), zero=zero, flipped=module.flipped)

    def decay(self, position: int) -> float:
        """Return the weight of the parameter itself in its first moment: wd * (1 - beta1^t) where decay acts through the gradient, else 0."""
        entry = self.raw.entries[position]
        hyper = self.raw.groups[entry.group].hyper
        spec = OPTIMIZERS.get(self.raw.optimizer)
        if spec is None or spec.decay != "l2" or hyper.get("decoupled_weight_decay") is True:
            return 0.0
        remembered = 1.0 - betas_of(hyper)[0] ** entry.step if entry.step else 1.0
        return float(hyper.get("weight_decay") or 0.0) * float(remembered)


def _pair_class(reader: Reader, members: Sequence[Module], zero: tuple[int, ...], other: tuple[int, ...], previous: Adapter | None) -> PairClass:
    first = members[0]
    earlier = Reader(reader.raw, previous) if previous is not None and _holds(previous, reader.adapter, members) else None
    one = _side(reader, earlier, [module.zero for module in members], zero, first, None)
    two = _side(reader, earlier, [module.other for module in members], other, first, one.unit)
    return PairClass(
        modules=tuple(members),
        zero_positions=zero,
        other_positions=other,
        rank=one.width // first.blocks,
        numel=one.numel,
        other_numel=two.numel,
        cosine=one.cosine,
        spread=one.spread,
        left=one.products,
        right=two.products,
        zero_drift=one.drift,
        other_drift=two.drift,
        moved_cosine=two.cosine if earlier else None,
        moved_spread=two.spread if earlier else None,
        width=one.width,
        unit=one.unit,
    )


@dataclass(frozen=True, slots=True)
class _Side:
    """One factor of a pair class: k keys against p positions."""

    cosine: Array
    spread: Array
    products: Array
    """(k, p, q): Z^T m, or m F^T."""
    drift: Array
    width: int
    numel: int
    unit: float


def _side(reader: Reader, earlier: Reader | None, keys: Sequence[str], positions: tuple[int, ...], module: Module, unit: float | None) -> _Side:
    zero = keys[0] == module.zero
    blocks = laws.zero_blocks if zero else laws.other_blocks
    weights = [reader.weight(key, module, zero=zero) for key in keys]
    width, n = weights[0].shape
    if not positions:
        none, numbers = np.zeros((len(keys), 0)), width * width // module.blocks
        return _Side(none, none, np.zeros((len(keys), 0, numbers), np.float32), np.zeros((0, 2, numbers), np.float32), width, width * n, unit or 1.0)
    first, update, drift, sizes = [], [], [], []
    for position in positions:
        found = reader.moments(position, keys[0], module, zero=zero)
        first.append(found.m)
        update.append(found.u)
        own = found.u @ found.m.T if zero else found.m @ found.u.T
        drift.append(np.stack([blocks(own, module.blocks), laws.diagonal(found.root.sum(axis=1), module.blocks, zero=zero)]))
        sizes.append(float(np.abs(found.m).max()))
    unit = unit or 1 / (max(sizes) or 1.0)
    moved = [weight - earlier.weight(key, module, zero=zero) for key, weight in zip(keys, weights)] if earlier else weights
    cosine: Array = np.zeros((0, 0))
    spread: Array = np.zeros((0, 0))
    if zero or earlier:
        norms = [np.array([float(np.linalg.norm(array)) for array in arrays]) for arrays in (moved, update)]
        cosine, spread = laws.displacement(laws.cross_products(moved, update), *norms)
    update.clear()
    cross = laws.cross_products(weights, [np.float32(unit) * m for m in first]) if zero else _swapped(weights, first, unit)
    products = blocks(cross, module.blocks) - _decayed(reader, weights, positions, module, zero=zero, unit=unit)
    return _Side(cosine, spread, products, np.stack(drift) * np.float32(unit), width, width * n, unit)


def _swapped(weights: Sequence[Array], first: Sequence[Array], unit: float) -> Array:
    """Return m_j F_i^T, (k, p, w, w): rows of the moment first, as in m_A A^T."""
    return laws.cross_products(weights, [np.float32(unit) * m for m in first]).transpose(0, 1, 3, 2)


def _decayed(reader: Reader, weights: Sequence[Array], positions: Sequence[int], module: Module, *, zero: bool, unit: float) -> Array:
    """Return what L2 decay inside the gradient adds to one side of balance, wd * Z^T Z or wd * F F^T; zero where decay is decoupled.

    The moments then average g + wd * W, and W hardly moves while they remember.
    """
    decays = np.array([reader.decay(position) for position in positions], np.float32)
    if not decays.any():
        return np.zeros((1, 1, 1), np.float32)
    blocks = laws.zero_blocks if zero else laws.other_blocks
    own = np.stack([blocks(weight @ weight.T, module.blocks) for weight in weights])
    return np.asarray(np.float32(unit) * own[:, None, :] * decays[None, :, None])


def _holds(previous: Adapter, adapter: Adapter, members: Sequence[Module]) -> bool:
    keys = [key for module in members for key in (module.zero, module.other)]
    return all(key in previous.tensors and previous.tensors[key].shape == adapter.tensors[key].shape for key in keys)


def _lone(reader: Reader, keys: Sequence[str], positions: tuple[int, ...], previous: Adapter | None, base: Mapping[str, TensorRef] | None) -> Lone:
    """Return the displacement of keys outside pairs, zero rows where the start is not known."""
    starts = [start_of(key, reader.adapter, previous, base) for key in keys]
    numel = reader.adapter.tensors[keys[0]].numel
    cosine = np.zeros((len(keys), len(positions)), np.float32)
    spread = np.full_like(cosine, 1 / np.sqrt(max(numel, 1)))
    if any(start is not None for start in starts):
        u = np.stack([reader.moments(position, keys[0], None).u.reshape(-1) for position in positions])
        for row, (key, start) in enumerate(zip(keys, starts)):
            if start is None:
                continue
            moved = np.asarray(reader.adapter.tensors[key].read(), np.float32).reshape(-1) - start.reshape(-1)
            cosine[row], spread[row] = laws.displacement_elementwise(moved, u)
    return Lone(tuple(keys), positions, numel, tuple(start is not None for start in starts), cosine, spread)


def betas_of(hyper: Hyper) -> tuple[float, float]:
    """Return (beta1, beta2) of a group, torch's defaults where it says nothing: the tests need them roughly, for the bias corrections."""
    betas = hyper.get("betas") or (hyper.get("beta1", 0.9), hyper.get("beta2", 0.999))
    return float(betas[0]), float(betas[1])


def _profiles(reader: Reader, lone: Sequence[Lone], pairs: Sequence[PairClass]) -> Iterator[Profile]:
    """Yield the profiles of vectors against the zero factors of their modules, class by class."""
    for each in lone:
        for pair in pairs:
            tied = [(key, module.zero) for key in each.keys if (module := module_of(key, pair.modules)) is not None]
            rows = pair.numel // pair.width
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


def base_tensor(key: str, base: Mapping[str, TensorRef]) -> TensorRef | None:
    """Return the base model's tensor that a `modules_to_save` or bias key was copied from, or None."""
    bare = key.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".modules_to_save.", ".")
    for form in (key, bare, f"model.{bare}", bare.removeprefix("model.")):
        if form in base:
            return base[form]
    return None
