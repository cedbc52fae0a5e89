"""What a family of orders is: the data that the rows make and that verdicts are taken over."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another order that a program could have made, whole. It fits every stored shape and differs from the claim where there is state."""

    what: str
    """What such a program does, in words that a person reads: `layers in descending order`, `all lora_A before all lora_B`."""
    keys: tuple[str | None, ...]
    """Adapter key by position, as this order has it; None where it names nothing that the adapter holds."""
    names: tuple[str | None, ...]
    """Live name by position."""
    fault: bool = False
    """True for what only goes wrong where names are counted or listed: to be ruled out, and never taken for what a program meant."""


@dataclass(frozen=True, slots=True)
class Exchangeable:
    """Kinds of module that may stand in each other's place, in all layers at once: their factors have equal shapes everywhere."""

    kinds: tuple[str, ...]
    """Name of each kind, numbers as `#`: `layers.#.self_attn.q_proj`, cut at the front as far as it stays distinct."""
    modules: tuple[tuple[tuple[str, ...], ...], ...]
    """Kind by kind, aligned by layer: the keys of all tensors of a module, which go with it."""


@dataclass(frozen=True, slots=True)
class Family:
    """All orders that a program could have made in place of the claimed one."""

    alternatives: tuple[Alternative, ...]
    exchangeable: tuple[Exchangeable, ...]
    """Only where the claim's definition order is a convention."""
    cut: int = 0
    """Orders left out because the family would pass its stated size; above zero, no proof by the family is complete."""
