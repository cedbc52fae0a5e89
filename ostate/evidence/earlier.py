"""Whether an adapter that a person calls earlier is of the run: by names and shapes, then by numbers.

Training moves weights away from where they began, by less than would make them unlike it; two runs that began with other random numbers are as
unlike as two random tensors. Null: the earlier tensor is independent of this one and symmetric about its own mean, so that the correlation of n
numbers has mean 0 and variance 1 / n. Runs that share their start (one seed, one base model) cannot be distinguished here, nor do they have to be:
the tests of names hold whatever the earlier tensor is, since their null turns the state's own moments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ostate.core.names import factor_of
from ostate.core.naming import Adapter
from ostate.core.tensors import TensorRef

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

COMPARED = 1 << 16
"""First numbers of each tensor that are compared."""
FEWEST = 16
"""Numbers of a tensor of which a correlation is taken."""
RELATED = 5.0
"""Deviations of the null from which two adapters are of one run; a run of 300 steps at rank 8 shows 170."""


class Resemblance(NamedTuple):
    """What two adapters have in common."""

    shared: int
    """Tensors of one name and shape."""
    equal: bool
    """True when all of these hold the same numbers."""
    matrices: int
    """Of these, those whose numbers were correlated."""
    deviations: float | None
    """Deviations of the null by which their correlations lie above 0 together; None where no number can be compared."""

    @property
    def unrelated(self) -> bool:
        """True when the numbers are as those of two runs that began apart."""
        return self.deviations is not None and self.deviations < RELATED


def resemblance(previous: Adapter, adapter: Adapter) -> Resemblance:
    """Return what an earlier adapter and the state's own have in common; numbers of both are read here."""
    shared = [key for key, ref in adapter.tensors.items() if key in previous.tensors and previous.tensors[key].shape == ref.shape]
    samples = [(_first_numbers(previous.tensors[key]), _first_numbers(adapter.tensors[key])) for key in shared]
    matrices = [(key, pair) for key, pair in zip(shared, samples) if len(adapter.tensors[key].shape) > 1]
    factors = [pair for key, pair in matrices if factor_of(key) is not None]  # heads and embeddings of all runs begin as the base model's
    compared = factors or [pair for _, pair in matrices]
    equal = bool(samples) and all(np.array_equal(then, now) for then, now in samples)
    return Resemblance(len(shared), equal, len(compared), related(compared))


def related(pairs: list[tuple[Array, Array]]) -> float | None:
    """Return how many deviations of the null the correlations of pairs of tensors, (n,) each, lie above 0 together; None where none has one."""
    found = []
    for then, now in pairs:
        if len(now) < FEWEST or not (np.isfinite(then).all() and np.isfinite(now).all()):
            continue
        then, now = then - then.mean(), now - now.mean()
        scale = float(np.sqrt((then @ then) * (now @ now)))
        if scale > 0:
            found.append(float(then @ now) / scale * len(now) ** 0.5)
    return sum(found) / len(found) ** 0.5 if found else None


def _first_numbers(ref: TensorRef) -> Array:
    """Return the first numbers of a tensor, float64, (<= COMPARED,); none of an empty one."""
    return np.asarray(next(iter(ref.chunks(COMPARED)), np.zeros(0)), np.float64)[:COMPARED]
