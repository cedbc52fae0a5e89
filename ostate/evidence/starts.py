"""Modules that began with the same numbers share a gauge: one seed used anew for each of them, or a copied adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ostate.evidence.independent import independent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]

COMPARED = 64
"""First numbers of each factor that are compared."""
FEWEST = 8
ALIKE = 0.6
"""Correlation from which two starts are the same one, before training moved them: at 64 unrelated numbers five deviations."""
TOGETHER = 1024


def shared_starts(samples: Sequence[Array]) -> list[int]:
    """Return, for each module, the first one that began with the same numbers as it, or as one that did so; itself, where none did.

    The same stream of random numbers fills tensors of different shape and scale, so first numbers are compared, up to a factor.

    Args:
        samples: the first numbers of each module's random factor, as stored, (>= COMPARED,); of fewer than FEWEST nothing is known.
    """
    rows = np.zeros((len(samples), COMPARED), np.float32)
    for row, sample in zip(rows, samples):
        known = np.asarray(sample[:COMPARED], np.float32)
        if len(known) >= FEWEST and np.isfinite(known).all() and known.std() > 0:
            row[: len(known)] = (known - known.mean()) / (known.std() * len(known) ** 0.5)
    first = list(range(len(samples)))
    for start in range(0, len(rows), TOGETHER):
        found = rows[start : start + TOGETHER] @ rows[start:].T
        for one, two in zip(*np.nonzero((found > ALIKE) | (found < -ALIKE))):
            join(first, start + int(one), start + int(two))
    return [root(first, module) for module in range(len(first))]


def root(first: list[int], module: int) -> int:
    """Return the first module of a module's start."""
    while first[module] != module:
        first[module] = first[first[module]]
        module = first[module]
    return module


def join(first: list[int], one: int, two: int) -> None:
    """Note that two modules have one start."""
    one, two = root(first, one), root(first, two)
    first[max(one, two)] = min(one, two)


def independent_starts(moved: Sequence[str | None], origins: Sequence[Sequence[int | None]], starts: Sequence[int]) -> list[int]:
    """Return the modules whose ranks are jointly independent and uniform, as `independent` does, where some modules share a start.

    What is drawn by itself is then a start, not a module: of modules with one start the first that is moved counts for all, and one whose
    moments come from a module of its own start does not count, since its relative gauge is none.
    """
    first_moved: dict[int, int] = {}
    for module, (what, sources) in enumerate(zip(moved, origins, strict=True)):
        if what is not None and starts[module] not in {starts[one] for one in sources if one is not None}:
            first_moved.setdefault(starts[module], module)
    chosen = set(first_moved.values())
    what_moved = [what if module in chosen else None for module, what in enumerate(moved)]
    return independent(what_moved, [[None if one is None else first_moved.get(starts[one], one) for one in sources] for sources in origins])
