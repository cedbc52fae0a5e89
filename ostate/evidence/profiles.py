"""Profiles of second moments by output row: a DoRA magnitude or a bias has large ones where its module's lora_B has them.

Both are state against state: log v of the vector with log of sum over r of v_B, row by row. The vector's key follows from its module's name
once lora_B has its place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ostate.core.lora_modules import LoraModule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

_VECTOR = re.compile(r"lora_magnitude_vector(\.[^.]+)?(\.weight)?|lora_B(\.[^.]+)?\.bias|(base_layer\.)?bias")
_LEAST_ROWS = 8


@dataclass(frozen=True, slots=True)
class Profile:
    """Vectors of one shape, each tied to the zero factor of its module."""

    tied: tuple[tuple[str, str], ...]
    """(key of the vector, key of its module's zero factor)."""
    positions: tuple[int, ...]
    zero_positions: tuple[int, ...]
    table: Array
    """(p, z): likeness of the profiles, atanh(correlation) * sqrt(rows - 3): about normal for unrelated ones."""


def module_of(key: str, modules: Sequence[LoraModule]) -> LoraModule | None:
    """Return the module that a vector belongs to by its name, or None."""
    for module in modules:
        stem = module.zero.rpartition("lora_")[0]
        if stem and key.startswith(stem) and _VECTOR.fullmatch(key.removeprefix(stem)):
            return module
    return None


def likeness(vectors: Array, factors: Array) -> Array:
    """Return how alike the profiles of p vectors (p, n) and z zero factors (z, n) are, (p, z); inputs are second moments by row.

    What all rows of a shape have in common (a shared residual stream) is taken out first where there is more than one.

    Null: the correlation of n unrelated rows, atanh(c) * sqrt(n - 3) ~ N(0, 1) (Fisher 1915).
    """
    rows = vectors.shape[1]
    one, two = (_centred(np.log(np.maximum(part, 0) + 1e-3 * np.median(part, axis=1, keepdims=True) + 1e-38)) for part in (vectors, factors))
    correlation = np.clip(one @ two.T, -0.9999, 0.9999)
    return np.asarray(np.arctanh(correlation) * np.sqrt(max(rows - 3, 1)))


def enough_rows(rows: int) -> bool:
    """True when a profile has rows enough to be distinguished from another."""
    return rows >= _LEAST_ROWS


def _centred(logs: Array) -> Array:
    logs = logs - logs.mean(axis=1, keepdims=True)
    if len(logs) > 2:
        logs = logs - logs.mean(axis=0, keepdims=True)
    return np.asarray(logs / (np.linalg.norm(logs, axis=1, keepdims=True) + 1e-30))
