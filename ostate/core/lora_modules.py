"""Which tensors of an adapter belong to one LoRA module, and which of its factors starts at zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ostate.core.names import factor_of, factor_words

from .adapter_config import AdapterConfig
from .naming import Adapter

if TYPE_CHECKING:
    import numpy as np

_ZERO_START = {True, None, "gaussian", "eva", "orthogonal_zero", "true", "True"}
"""Values of `init_lora_weights` that leave B at zero (peft tuners/lora/layer.py, `reset_lora_parameters`; EVA sets A only)."""
_OTHER_TUNERS = {"ADALORA", "LOHA", "LOKR", "VERA", "VBLORA", "RANDLORA", "XLORA", "POLY", "GRALORA", "SHIRA", "MISS", "BONE", "PVERA"}
"""Tuners whose weight change is not B A of two trained factors, or whose factors are not both trained."""


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One LoRA module: the keys of its two factors.

    `zero` starts at zero, `other` does not. In canonical form each is (width, n), width = blocks * r.
    """

    prefix: str
    zero: str
    other: str
    flipped: bool
    """True where the zero factor is stored (r, n) and the other one (m, r): embeddings, whose lora_embedding_A is the zero factor, and factors that
    somebody's code multiplies from the right."""
    blocks: int
    """Experts that share the two tensors; 1 elsewhere."""


def modules_of(adapter: Adapter) -> list[LoraModule]:
    """Return the LoRA modules whose two factors the adapter holds, in the order of their first key.

    Where no key has a word for a factor that is known, two keys are one module's that differ in a word such as `a` and `b` alone, and whose shapes
    go together.
    """
    found: dict[tuple[str, bool], dict[str, str]] = {}
    for key in adapter.tensors:
        split = factor_of(key)
        if split is not None:
            rest, kind = split
            found.setdefault((rest, kind.startswith("embedding")), {})[kind[-1]] = key
    if not found:
        return _by_words(adapter)
    modules = []
    for (rest, embedding), keys in found.items():
        if set(keys) != {"A", "B"}:
            continue
        shape_a, shape_b = adapter.tensors[keys["A"]].shape, adapter.tensors[keys["B"]].shape
        if len(shape_a) < 2 or len(shape_b) < 2 or shape_a[0] != shape_b[1] or 0 in (*shape_a, *shape_b):
            continue
        zero, other = (keys["A"], keys["B"]) if embedding else (keys["B"], keys["A"])
        modules.append(LoraModule(rest, zero, other, embedding, _blocks(keys["A"], shape_a[0], adapter.config)))
    return modules


def _by_words(adapter: Adapter) -> list[LoraModule]:
    """Return the pairs of keys that differ in one word for a factor; none where a matrix of the file is left over, or could be in two pairs.

    A rank is less than either side that it joins. Factors may lie as (r, n) and (m, r), or the other way about.
    """
    matrices = {key: ref.shape for key, ref in adapter.tensors.items() if len(ref.shape) == 2}
    by_stem: dict[str, dict[str, str]] = {}
    for key in matrices:
        for stem, kind in factor_words(key):
            by_stem.setdefault(stem, {})[kind] = key
    modules: list[LoraModule] = []
    taken: list[str] = []
    for stem, keys in by_stem.items():
        flipped = _orientation(*(matrices[keys[kind]] for kind in "AB")) if set(keys) == {"A", "B"} else None
        if flipped is not None:
            modules.append(LoraModule(stem, keys["B"], keys["A"], flipped, 1))
            taken += keys.values()
    return modules if len(taken) == len(set(taken)) == len(matrices) else []


def _orientation(a: Sequence[int], b: Sequence[int]) -> bool | None:
    """Return False for factors (r, n) and (m, r), True for (n, r) and (r, m); None where the shapes do not go together, or in both ways."""
    plain = a[0] == b[1] and 0 < a[0] < min(a[1], b[0])
    turned = a[1] == b[0] and 0 < a[1] < min(a[0], b[1])
    return None if plain == turned else turned


def starts_at_zero(adapter: Adapter) -> str | None:
    """Return None when the zero factors are known to have started at zero, else why that is not known."""
    tuner = str(adapter.config.get("peft_type", "LORA")).upper()
    if tuner in _OTHER_TUNERS:
        return f"{tuner} does not train two factors of which one starts at zero"
    init = adapter.config.get("init_lora_weights", True)
    if isinstance(init, bool):
        return None if init else "init_lora_weights is false: no factor starts at zero"
    return None if init in _ZERO_START else f"init_lora_weights={init!r} starts lora_B away from zero"


def balance_holds(adapter: Adapter) -> str | None:
    """Return None when the loss sees the two factors through their product alone and both are trained, else why not."""
    if has_diagonal(adapter):
        return "KaSA: a trained diagonal stands between A and B"
    tuner = str(adapter.config.get("peft_type", "LORA")).upper()
    return f"{tuner}: the loss depends on A and B not only through B A" if tuner in _OTHER_TUNERS else None


def has_diagonal(adapter: Adapter) -> bool:
    """Return whether W = B diag(lora_diag) A, PEFT's KaSA (tuners/lora/variants.py): latent dimensions keep their signs free, B and A no balance."""
    return any(key.endswith(".lora_diag") for key in adapter.tensors)


def canonical(array: np.ndarray, *, zero: bool, flipped: bool) -> np.ndarray:
    """Return a factor (or a moment of it) as (width, n), whichever way it is stored.

    A convolution's A (r, in, kh, kw) is read as (r, in * kh * kw), its B (out, r, 1, 1) as (out, r).
    """
    if array.ndim > 2:
        array = array.reshape(array.shape[0], -1)
    return array if zero == flipped else array.T


def _blocks(key: str, width: int, config: AdapterConfig) -> int:
    """Return how many experts share a tensor: its width over the rank that the configuration gives, for `target_parameters` only."""
    parents = {target.rpartition(".")[0] for target in config.get("target_parameters") or ()}
    if not any(parent and (f".{parent}." in f".{key}") for parent in parents):
        return 1
    rank: object = config.get("r")
    for pattern, value in (config.get("rank_pattern") or {}).items():
        if pattern in key:
            rank = value
    if not isinstance(rank, int) or rank < 1 or width % rank or width == rank:
        return 1
    return width // rank
