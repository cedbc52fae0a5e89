"""Optimizers: which slots each keeps, in which shapes, where its step lies, and how it uses its second moment.

`recognise` names the row that a file belongs to; `second_moment` gives the numbers the row's formula wants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .packings import PACKINGS, Packing
from .recognise import recognise
from .rows import OPTIMIZERS
from .shapes import parameter_shape
from .spec import OptimizerSpec, step_of

if TYPE_CHECKING:
    from .moments import SECOND_MOMENTS, Form, Moment, divisor, form_of, second_moment

__all__ = [
    "OPTIMIZERS",
    "PACKINGS",
    "SECOND_MOMENTS",
    "Form",
    "Moment",
    "OptimizerSpec",
    "Packing",
    "divisor",
    "form_of",
    "parameter_shape",
    "recognise",
    "second_moment",
    "step_of",
]

_MOMENTS = ("SECOND_MOMENTS", "Form", "Moment", "divisor", "form_of", "second_moment")
"""What needs the numbers, imported when it is asked for."""


def __getattr__(name: str) -> Any:
    if name not in _MOMENTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import moments

    return getattr(moments, name)
