"""Tensors outside the pairs whose start is known: what moved them is the sum of their own updates.

Null: the units on one side of a matrix (its rows, or its columns) are private to it, so that under another tensor's moments their signs are
independent and symmetric. Which side is private is not known, so both must say it, and the weaker one counts. A vector lies in a stream that
all layers share: it has no such side and proves nothing. Tensors of one layer may share such signs (a gate and what it gates), and embeddings
and heads share both their sides: against an order that exchanges these nothing is said (`order.weigh_all`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ostate.core.naming import Adapter
from ostate.core.tensors import Slot, TensorRef
from ostate.evidence.look import Source, moments_of

from . import statistics
from .tables.stream_rows import Rows, betas_of
from .tables.tables import base_tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

STRENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Exponents whose e-values are averaged; in units of the null deviation."""


def sign_digits(terms: Array) -> float:
    """Return log10 of an e-value that terms (n,) have a positive sum, whose signs are independent and symmetric under the null.

    E exp(l sum s x) = prod cosh(l x), so exp(l sum x) / prod cosh(l x) has mean 1 for every l.
    """
    scale = float(np.sqrt(terms @ terms))
    if not np.isfinite(scale) or scale == 0:
        return 0.0
    x = terms / scale
    logs = [strength * float(x.sum()) - float((np.logaddexp(strength * x, -strength * x) - np.log(2)).sum()) for strength in STRENGTHS]
    return max(0.0, float(np.logaddexp.reduce(logs) - np.log(len(logs))) / float(np.log(10)))


def known_starts(
    source: Source, keys: Sequence[str | None], stated: Sequence[int], taken: set[int], previous: Adapter | None, base: Mapping[str, TensorRef] | None
) -> dict[int, float]:
    """Return by position the digits of what is known to have moved along its own updates; `taken` positions belong to modules."""
    found = {}
    for position in stated:
        key = keys[position]
        ref = source.adapter.tensors.get(key) if key is not None and position not in taken else None
        if key is None or ref is None or len(ref.shape) < 2:
            continue
        start = start_of(key, ref, previous, base)
        if start is not None:
            digits = _digits(source, ref, start, position)
            if digits > 0:
                found[position] = digits
    return found


def start_of(key: str, ref: TensorRef, previous: Adapter | None, base: Mapping[str, TensorRef] | None) -> Slot | None:
    """Return where a matrix is known to have started: the earlier checkpoint's tensor, or the base model's; None where that is not at hand."""
    earlier = previous.tensors.get(key) if previous is not None else None
    if earlier is None and base:
        earlier = base_tensor(key, base)
    return earlier if earlier is not None and earlier.shape == ref.shape else None


def _digits(source: Source, ref: TensorRef, start: Slot, position: int) -> float:
    entry = source.raw.entries[position]
    first, second = moments_of(source, entry)
    if first is None or entry.numel != ref.numel:
        return 0.0
    rows, columns = ref.shape[0], ref.numel // max(ref.shape[0], 1)
    strip = max(1, source.strip // max(columns, 1))
    slots: list[Slot] = [ref, start, entry.slots[first], *([entry.slots[second]] if second else [])]
    readers = [Rows(slot if slot.shape == ref.shape else slot.with_shape(ref.shape), columns, strip=strip) for slot in slots]
    hyper = source.raw.groups[entry.group].hyper
    eps = hyper.get("eps")
    by_row, by_column = np.zeros(rows), np.zeros(columns)
    for at in range(0, rows, strip):
        weight, begun, m, *rest = (each.take(min(strip, rows - at)) for each in readers)
        if rest:
            root = np.sqrt(np.maximum(rest[0], 0))
            known_eps = float(eps) if isinstance(eps, (int, float)) else 1e-8
            m = statistics.update_direction(m, root, step=entry.step, betas=betas_of(hyper), eps=known_eps)
        along = -((weight - begun) * m)
        by_row[at : at + len(along)] = along.sum(axis=1)
        by_column += along.sum(axis=0)
    if not all(each.finite for each in readers):
        return 0.0
    return min(sign_digits(by_row), sign_digits(by_column))
