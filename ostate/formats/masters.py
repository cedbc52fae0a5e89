"""Float32 master weights as a witness: cut like the moments, so where they are the model's own weights the names are right."""

from __future__ import annotations

from collections.abc import Mapping

from ..model import RawState, Slot, TensorRef

ENOUGH = 4096
"""Elements of a parameter that are compared."""
_TOLERANCE = 2**-7
"""Relative: the model's weights are the masters rounded to 16 bits (bfloat16 keeps 8 bits, so half of one in 2**8)."""


def disagreements(master: Mapping[str, Slot], weights: Mapping[str, TensorRef]) -> tuple[list[str], list[str]]:
    """Return the names that are in both with one shape, and of these the ones whose numbers differ."""
    compared = [name for name, slot in master.items() if name in weights and weights[name].shape == slot.shape]
    return compared, [name for name in compared if not _agree(master[name], weights[name])]


def masters_against(raw: RawState, weights: Mapping[str, TensorRef]) -> tuple[list[str], list[str]]:
    """As `disagreements`, of a state's own masters and weights under the names that the state records."""
    named = {raw.entries[position].name: slot for position, slot in raw.master.items()}
    return disagreements({name: slot for name, slot in named.items() if name is not None}, weights)


def _agree(master: Slot, weight: TensorRef) -> bool:
    import numpy as np

    one, other = next(iter(master.chunks(ENOUGH)), None), next(iter(weight.chunks(ENOUGH)), None)
    if one is None or other is None:
        return one is other
    count = min(one.size, other.size)
    return bool(np.allclose(one[:count], other[:count], rtol=_TOLERANCE, atol=1e-6))
