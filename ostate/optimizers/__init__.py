"""Optimizers: which slots each keeps, in which shapes, where its step lies, and how it uses its second moment.

`recognise` names the row that a file belongs to; `moments.second_moment` gives the numbers the row's formula wants; `packings` says what
packing into few bits costs. A look at the index needs neither of the last two.
"""

from .recognise import parameter_shape, recognise
from .rows import OPTIMIZERS
from .spec import OptimizerSpec, step_of

__all__ = ["OPTIMIZERS", "OptimizerSpec", "parameter_shape", "recognise", "step_of"]
