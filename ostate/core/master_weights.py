"""Float32 master weights in an optimizer state against the model's own weights, which are the same numbers rounded to 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

_Number = TypeVar("_Number", "float", "np.ndarray")
RELATIVE = 2.0**-7
"""bfloat16 keeps 8 bits, so a rounded weight is off by half of one in 2**8; twice that."""
ABSOLUTE = 1e-6
"""Smaller numbers tell nothing: a tensor of zeros equals any other one."""
FIRST = 64
"""Elements by which most pairs that differ are distinguished."""


def close(master: _Number, weight: _Number) -> bool | np.ndarray:
    """Return whether a master weight, or each of an array, is the model's weight up to rounding; False for nan."""
    near: bool | np.ndarray = abs(master - weight) <= ABSOLUTE + RELATIVE * abs(weight)
    return near
