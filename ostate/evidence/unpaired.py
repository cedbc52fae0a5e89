"""Tensors outside the pairs whose start is known: what moved them is the sum of their own updates.

Null: a matrix whose units have signs that are private to its layer is turned along with them, W_i - W_start_i -> s_i (…), and moments from another
layer are not, so that <W_i - W_start_i, -u_i> is as likely positive as negative, for each unit by itself. Which units have one sign together (`ties`)
follows from the attention:

* values, and what takes them up: a sign for each dimension of a head of values, of all query heads together that share the head;
* queries and keys: a sign for each head of keys. Turning one dimension alone would not go with rotary positions, whatever pairs these make of
  dimensions, and query heads that share keys turn with them;
* neurons behind a gate: a sign for each. A gate has none, nor has a neuron without one: its activation sees the sign.

Tensors outside the layers (heads, embeddings) lie in the residual stream, whose signs are the model's own, along one of their two sides: the weaker
side counts, and only where no other tensor has their shape. A vector lies in that stream too and proves nothing.
Tensors of one layer share their signs: against an order that exchanges these nothing is said (`order.weigh_all`), and of layers that are copies of
one another nothing at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ostate.core.lora_modules import modules_of
from ostate.core.naming import Adapter
from ostate.core.tensors import Slot, TensorRef
from ostate.evidence.look import Source, moments_of
from ostate.evidence.starts import COMPARED, shared_starts
from ostate.evidence.whole_models import PRODUCTS, heads_of

from . import statistics
from .displaced import KnownStart
from .tables.base_tensors import base_tensor
from .tables.stream_rows import Rows, betas_of, eps_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]
    Ties = NDArray[np.intp]

STRENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Exponents whose e-values are averaged; in units of the null deviation."""
QUERIES = (
    ("q_proj", "k_proj"),
    ("attention.self.query", "attention.self.key"),
    ("attention.attention.query", "attention.attention.key"),
    ("to_q", "to_k"),
    ("q_lin", "k_lin"),
    ("SelfAttention.q", "SelfAttention.k"),
    ("EncDecAttention.q", "EncDecAttention.k"),
)
"""Endings of the layers of queries and of keys, with the same path before them."""


def sign_digits(terms: Array) -> float:
    """Return log10 of an e-value that terms (n,) have a positive sum, whose signs are independent and symmetric under the null.

    E exp(l sum s x) = prod cosh(l x), so exp(l sum x) / prod cosh(l x) has mean 1 for every l. It is below 1 where the signs speak against it.
    """
    scale = float(np.sqrt(terms @ terms))
    if not np.isfinite(scale) or scale == 0:
        return 0.0
    x = terms / scale
    logs = [strength * float(x.sum()) - float((np.logaddexp(strength * x, -strength * x) - np.log(2)).sum()) for strength in STRENGTHS]
    return float(np.logaddexp.reduce(logs) - np.log(len(logs))) / float(np.log(10))


def known_starts(
    source: Source, keys: Sequence[str | None], stated: Sequence[int], taken: set[int], previous: Adapter | None, base: Mapping[str, TensorRef] | None
) -> dict[int, float]:
    """Return by position log10 of an e-value for what is known to have moved along its own updates; `taken` positions belong to modules."""
    tested: dict[int, tuple[TensorRef, Slot, list[tuple[int, Ties]]]] = {}
    for position in stated:
        key = keys[position]
        ref = source.adapter.tensors.get(key) if key is not None and position not in taken else None
        if key is None or ref is None or len(ref.shape) != 2 or not ref.numel:
            continue
        start, sides = start_of(key, ref, previous, base), ties(key, source.adapter)
        if start is not None and sides:
            tested[position] = ref, start, sides
    samples = [np.asarray(next(iter(start.chunks(COMPARED))), np.float32)[:COMPARED] for _, start, _ in tested.values()]
    first = shared_starts(samples)
    found = {}
    for (position, (ref, start, sides)), origin in zip(tested.items(), first):
        terms = _terms(source, ref, start, position) if first.count(origin) == 1 else None
        if terms is not None:
            found[position] = min(sign_digits(np.asarray(np.bincount(tied, terms[axis]), np.float64)) for axis, tied in sides)
    return found


def starts_at_hand(
    adapter: Adapter, keys: Sequence[str | None], previous: Adapter | None, base: Mapping[str, TensorRef] | None
) -> dict[str, KnownStart]:
    """Return the starts of the claimed tensors that another file holds, by key: their siblings are all tensors of their shape.

    LoRA's factors are not among them: their gauges tell, and hundreds of steps after an earlier checkpoint a last direction does not.
    """
    factors = {key for module in modules_of(adapter) for key in (module.zero, module.other)}
    claimed = [key for key in keys if key is not None and key in adapter.tensors and key not in factors]
    found = {key: start_of(key, adapter.tensors[key], previous, base) for key in claimed}
    return {key: KnownStart("", start) for key, start in found.items() if start is not None}


def start_of(key: str, ref: TensorRef, previous: Adapter | None, base: Mapping[str, TensorRef] | None) -> Slot | None:
    """Return where a tensor is known to have started: the earlier checkpoint's tensor, or the base model's; None where that is not at hand."""
    earlier = previous.tensors.get(key) if previous is not None else None
    if earlier is None and base:
        earlier = base_tensor(key, base)
    return earlier if earlier is not None and earlier.shape == ref.shape else None


def ties(key: str, adapter: Adapter) -> list[tuple[int, Ties]]:
    """Return (axis, number of the sign that each row or column has) of a matrix: of one side, or of two where only one of them is private.

    Nothing where signs are not private, or it is not known which go together.
    """
    rows, columns = adapter.tensors[key].shape
    for product in PRODUCTS:
        for mine, theirs in ((product.before, product.behind), (product.behind, product.before)):
            other = _beside(key, mine, theirs, adapter)
            if other is None or (product.gate and _beside(key, mine, product.gate, adapter) is None):
                continue
            if mine == product.before:
                return [(0, np.arange(rows))]
            heads = heads_of((rows, columns), adapter.tensors[other].shape, adapter)
            if heads is None:
                return []
            shared, size = heads
            column = np.arange(columns)
            return [(1, column if shared == 1 else column // (shared * size) * size + column % size)]
    for queries, of_keys in QUERIES:
        near = key if _ends(key, of_keys) else _beside(key, queries, of_keys, adapter)
        if near is not None:
            dimensions, length = adapter.facts.get("head_dim"), adapter.tensors[near].shape[0]
            number = length // dimensions if isinstance(dimensions, int) and 0 < dimensions <= length and not length % dimensions else 0
            return [(0, np.arange(rows) // (rows // number))] if number and not rows % number else []
    if re.search(r"(?:^|\.)\d+\.", key) or sum(ref.shape == (rows, columns) for ref in adapter.tensors.values()) > 1:
        return []
    return [(0, np.arange(rows)), (1, np.arange(columns))]


def _ends(key: str, ending: str) -> bool:
    return re.search(rf"(?:^|\.){re.escape(ending)}\.weight$", key) is not None


def _beside(key: str, ending: str, other: str, adapter: Adapter) -> str | None:
    """Return the key that has `other` where this one has `ending`; None where this one has not, or there is none such."""
    near = f"{key.removesuffix('.weight').removesuffix(ending)}{other}.weight" if _ends(key, ending) else None
    return near if near in adapter.tensors else None


def _terms(source: Source, ref: TensorRef, start: Slot, position: int) -> tuple[Array, Array] | None:
    """Return the sums of (W - W_start) times -u, by row and by column, float64; None where there are no such moments, or some are not finite."""
    entry = source.raw.entries[position]
    first, second = moments_of(source, entry)
    if first is None or entry.numel != ref.numel:
        return None
    rows, columns = ref.shape
    strip = max(1, source.strip // max(columns, 1))
    slots: list[Slot] = [ref, start, entry.slots[first], *([entry.slots[second]] if second else [])]
    readers = [Rows(slot if slot.shape == ref.shape else slot.with_shape(ref.shape), columns, strip=strip) for slot in slots]
    hyper = source.raw.groups[entry.group].hyper
    by_row, by_column = np.zeros(rows), np.zeros(columns)
    for at in range(0, rows, strip):
        weight, begun, m, *rest = (each.take(min(strip, rows - at)) for each in readers)
        if rest:
            root = np.sqrt(np.maximum(rest[0], 0))
            m = statistics.update_direction(m, root, step=entry.step, betas=betas_of(hyper), eps=eps_of(hyper))
        along = -((weight - begun) * m)
        by_row[at : at + len(along)] = along.sum(axis=1)
        by_column += along.sum(axis=0)
    return (by_row, by_column) if all(each.finite for each in readers) else None
