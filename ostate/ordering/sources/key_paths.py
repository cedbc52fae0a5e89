"""A key of an adapter file in parts: its modules, and what its tuner put into the last of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ostate.core.foreign import number_in

from .module_orders import LEADS, TOWERS
from .tuner_keys import PEFT_RANKS, RANKS, split_key

_LEAD = re.compile(rf"^({'|'.join(sorted(LEADS, key=len, reverse=True))})_(.+)$")

_FACTORS = dict.fromkeys(("lora", "lora_layer", "lora_linear_layer"), "lora_A")
"""Words of older diffusers' for what holds both factors: `lora.down` is PEFT's `lora_A`, beside its `lora_magnitude_vector`."""


class KeyPath(NamedTuple):
    """A key in parts."""

    key: str
    parts: tuple[str, ...]
    """Of the module's path, then of the tensor within it. A path whose dots became underscores is one part, until a family's words divide it."""
    inner: int
    """How many of `parts` are the tensor's, the last ones."""

    @property
    def words(self) -> set[str]:
        """The names of modules in the path, without numbers, the model's own place and PEFT's."""
        return {part for part in self.parts[len(tower_of(self.parts)) : len(self.parts) - self.inner] if number_in(part) is None} - {
            "base_model",
            "model",
        }


def read_path(key: str) -> KeyPath:
    """Return a key in parts; ai-toolkit writes `$$` for the dots of a module's name, others an underscore behind a word of their own."""
    read = split_key(key)
    module, _, last = (read.module, "", read.slot) if read is not None else key.rpartition(".")
    inner = last.split(".")
    parts = module.replace("$$", ".").split(".") if module else []
    lead = _LEAD.match(parts[0]) if parts else None
    if lead is not None:
        parts = [lead[1], lead[2], *parts[1:]]
    return KeyPath(key, (*parts, *inner), len(inner))


def tower_of(parts: Sequence[str]) -> tuple[str, ...]:
    """Return the path of the model within the model that these parts lie in; empty for what lies around such models."""
    last = max((at for at, part in enumerate(parts) if part in TOWERS), default=-1)
    return tuple(parts[: last + 1])


def before_by_number(one: str, other: str) -> int | None:
    """Return how two parts of a name compare where both are numbers, else None."""
    left, right = number_in(one), number_in(other)
    return left - right if left is not None and right is not None else None


def before_in_module(one: str, other: str, *, peft: bool) -> int | None:
    """Return how two parts of a name compare that belong to one module's own tensors; None where it is not known.

    Args:
        one: a part.
        other: what stands in its place in another name.
        peft: true for PEFT's own layers, which register some words in another order than other tuners do.
    """
    ranks = PEFT_RANKS if peft else RANKS
    one, other = (_FACTORS.get(part, part) for part in (one, other))
    if one in ranks and other in ranks:
        return ranks[one] - ranks[other]
    if {one, other} == {"weight", "bias"}:
        return -1 if one == "weight" else 1
    return None
