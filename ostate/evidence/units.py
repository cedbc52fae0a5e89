"""The units of the tests: one or two tensors with a gauge of their own, and which tests apply to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ostate.core.lora_modules import LoraModule

DIMENSIONS = 16
"""Latent dimensions of a pair that are compared: four blocks of four say 10 digits of a module alone."""
Group = Literal["signed", "signs", "permuted", "neurons"]
"""What may be done to the latent dimensions without anything else noticing: signed permutations, signs alone, permutations alone; `neurons`:
permutations of both factors together, and signs where one of them is asked of, since each neuron balances by itself."""


@dataclass(frozen=True, slots=True)
class Unit(LoraModule):
    """One or two tensors whose latent dimensions no other tensor shares. A single tensor is the zero factor; `other` is then empty.

    The rows of a table say which axis the latent dimensions lie along; a matrix is read as (n, r) where tall, else as (r, n).
    """

    displaced: tuple[bool, bool] = (True, False)
    """Whether the start of the zero factor, of the other one, is known: each is then the sum of its own updates."""
    balanced: bool = True
    """True where the loss sees the two through their product alone: zero^T d zero = d other other^T, (r, r)."""
    group: Group | None = "signed"
    """None: nothing, so that the unit says nothing; it may still be known not to be independent of others."""
    tall: tuple[bool, bool] | None = None
    """Of the zero factor and of the other one; None: as LoRA has them, one of each."""
    start: float = 0.0
    """What every element of the zero factor was at first, where nothing else is known of it."""
    gauge: str = ""
    """Units that name the same gauge share it; empty: the unit has one to itself."""
    most: int = DIMENSIONS
    """Latent dimensions that are compared at most."""
    flat: bool = False
    """True where the zero factor as a whole has one sign: r = 1."""
    folded: bool = False
    """True where the zero factor's latent dimensions are all its indices but the last."""
    halved: bool = False
    """True where latent dimensions come in pairs that begin equal: their differences are what moved."""

    heads: tuple[int, int] = (1, 0)
    """Query heads that share a head of values, and a head's dimensions: the zero factor's columns are (head of values, query head, dimension)."""

    @property
    def paired(self) -> bool:
        """True for two factors of a product, which all of one run are compared by (`apart`)."""
        return bool(self.other) and self.balanced

    def is_tall(self, *, zero: bool) -> bool:
        """Return whether a factor is stored (n, r)."""
        return self.tall[not zero] if self.tall is not None else zero != self.flipped

    def of_its_block(self, key: str) -> bool:
        """Return whether a key that is not the unit's own lies in the same block of the model."""
        return key not in (self.zero, self.other) and key.startswith(self.prefix)
