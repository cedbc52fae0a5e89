"""Optimizers: which slots each keeps, in which shapes, where its step lies, and how it uses its second moment.

`recognise` names the row that a file belongs to; `second_moment` gives the numbers the row's formula wants.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .recognise import recognise
from .rows import OPTIMIZERS
from .shapes import parameter_shape
from .spec import OptimizerSpec, step_of

if TYPE_CHECKING:
    from .moments import SECOND_MOMENTS, Form, Moment, confirmed, divisor, fits_adamw, form_of, second_moment
    from .packings import PACKINGS, Packing

__all__ = [
    "OPTIMIZERS",
    "PACKINGS",
    "SECOND_MOMENTS",
    "Form",
    "Moment",
    "OptimizerSpec",
    "Packing",
    "confirmed",
    "divisor",
    "fits_adamw",
    "form_of",
    "parameter_shape",
    "recognise",
    "second_moment",
    "step_of",
]

_LATER = {
    **dict.fromkeys(("SECOND_MOMENTS", "Form", "Moment", "confirmed", "divisor", "fits_adamw", "form_of", "second_moment"), "moments"),
    **dict.fromkeys(("PACKINGS", "Packing"), "packings"),
}
"""What a look at the index does not need, imported when it is asked for: name -> module."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
