"""Optimizers: which slots each keeps, in which shapes, where its step lies, and how it uses its second moment.

`recognise` names the row that a file belongs to; `second_moment` gives the numbers the row's formula wants.
"""

from .moments import SECOND_MOMENTS, Form, Moment, divisor, form_of, second_moment
from .packings import PACKINGS, Packing
from .recognise import recognise
from .rows import OPTIMIZERS
from .shapes import parameter_shape
from .spec import OptimizerSpec, step_of

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
