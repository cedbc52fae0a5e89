"""A live name taken apart: the module's path, which of its tensors, which adapter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ostate.core.names import ADAPTER_CONTAINERS, CONTAINERS, PEFT_PREFIX, SAVED, factor_of, strip_wrappers

_PLAIN = ("bias", "weight")
_FLAT = re.compile(r"^(?:lora|lycoris)_[a-z0-9]+_")
"""Names of kohya's making: the module's dots are underscores."""
_SLOT_RANK = {word: rank for rank, word in enumerate(("base_layer", *ADAPTER_CONTAINERS, *_PLAIN, SAVED))}
_FACTOR_RANK = {"A": _SLOT_RANK["lora_A"], "B": _SLOT_RANK["lora_B"]}
_RANKED = {"embedding_A": _SLOT_RANK["lora_embedding_A"], "embedding_B": _SLOT_RANK["lora_embedding_B"], **_FACTOR_RANK}


class NameParts(NamedTuple):
    """One parameter of the claim, its name taken apart."""

    name: str
    key: str | None
    path: tuple[str, ...]
    """The module's name, without wrappers and PEFT's prefix, in components."""
    factor: str
    """`lora_A`, `lora_B`, `lora_magnitude_vector`, `weight`, `bias`, …: which of the module's tensors."""
    rank: int
    """Where the factor stands among its module's, as PEFT registers them."""
    adapter: str
    """The adapter's name within the live name; empty where there is none."""
    tuned: bool
    """True for what a tuner trains; False for whole tensors."""


def plain(name: str) -> str:
    """Return a name in the one form that all releases of PEFT share."""
    return strip_wrappers(name).removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")


def row_of(name: str, key: str | None) -> NameParts:
    """Take one live name apart."""
    parts = strip_wrappers(name).removeprefix(PEFT_PREFIX).split(".")
    found = next((at for at, part in enumerate(parts) if part in CONTAINERS or part == SAVED), None)
    if found is not None:
        rest = parts[found + 1 :]
        adapter = rest[0] if rest and rest[0] not in _PLAIN else ""
        tail = ".".join(rest[bool(adapter) :])
        whole = parts[found] == SAVED
        bias = tail.endswith("bias")
        factor = tail if whole else f"{parts[found]}.bias" if bias else parts[found]
        rank = _SLOT_RANK.get("bias" if whole and bias else parts[found], len(_SLOT_RANK))
        return NameParts(name, key, components(parts[:found]), factor, rank, adapter, not whole)
    split = factor_of(name)
    if split is not None:
        kind = split[1]
        stem = re.sub(r"\.(?:weight|bias)$", "", split[0]).rstrip(".").removesuffix(".lora").split(".")
        return NameParts(name, key, components(stem), f"lora_{kind}", _RANKED[kind], "", True)
    base = parts[:-1]
    inside = base[:-1] if base and base[-1] == "base_layer" else base
    return NameParts(name, key, components(inside), parts[-1], _SLOT_RANK.get("base_layer", 0), "", False)


def components(parts: Sequence[str]) -> tuple[str, ...]:
    """Return the components of a module's name, whichever sign stands between them."""
    if len(parts) == 1 and _FLAT.match(parts[0]):
        return tuple(parts[0].split("_"))
    if any("$$" in part for part in parts):
        return tuple(piece for part in parts for piece in part.split("$$"))
    return tuple(parts)


_UNET = frozenset(["down_blocks", "up_blocks", "mid_block", "down", "up", "mid", "input", "output", "middle"])
"""Halves of a U-Net, in names with dots and in kohya's."""
_BLOCKS = (("attentions",), ("transformer_blocks",), ("transformer", "blocks"))


def inner_part(path: Sequence[str]) -> int:
    """Return where the part of a module's path begins that its class alone decides: behind the half of a U-Net, else at the front.

    The blocks of both halves and of the middle are of the same classes, so an order of their modules holds in all of them or in none.
    """
    half = next((at for at, part in enumerate(path) if part in _UNET), None)
    if half is None:
        return 0
    found = [at for at in range(half, len(path)) if any(tuple(path[at : at + len(words)]) == words for words in _BLOCKS)]
    return found[-1] if found else 0
