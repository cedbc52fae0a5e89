"""The tested tensors of each PEFT method, and their gauge: one row each, read in peft's source (tuners/<method>/layer.py, 0.3.0 to 0.21.2).

A row says what is a product of two factors (`Pair`), what is known to start at one number (`Vector`), or why nothing is tested. A wrong start
costs power and proves nothing false: the null rests on the gauge alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from ostate.core.lora_modules import has_diagonal, modules_of, starts_at_zero
from ostate.core.naming import Adapter

from .displaced import KnownStart
from .private_sides import private_side
from .units import Unit
from .whole_models import whole_model

NOT_EXCHANGEABLE = frozenset({"pissa", "olora", "corda", "loftq", "eva", "lora_ga"})
"""Starts whose latent dimensions come in the order of singular values: only their signs are free (peft tuners/lora/layer.py)."""
SHARED_BASIS = "the frozen bases are the same for every module: only the signs of an attention's values count"
SHARED_TRANSFORM = "coefficients of one transform for every module: from a start at zero the sign of an attention's values counts, and nothing else"
BIAS = "lora_B.bias"
LIKE_LORA = frozenset({"LORA", "MIXED"})
"""Methods whose factors are LoRA's, as far as a file's keys say so."""


class Pair(NamedTuple):
    """Two trained tensors that lie in one module."""

    zero: str
    """Container of the one that starts at zero, where one of them does."""
    other: str
    tall: tuple[bool, bool]
    """Which is stored (n, r): the first, the second."""
    displaced: tuple[bool, bool] = (True, False)
    balanced: bool = True
    unless: str = ""
    """A container beside them that makes the pair another kind of product."""


class Vector(NamedTuple):
    """One trained tensor that starts at one number."""

    word: str
    """Its container, or the end of its key."""
    start: float
    side: str
    """Which axis of the module's weight its elements lie along: `out`, along a column or as a vector; `last`: the same, along its last axis;
    `feedforward`: what it enters, where it is a row, else `out`; `rows`: each of its rows along a stretch of `out`, and all of it one sign where that
    is not private; `stretches`: the same rows, and nothing elsewhere; `whole`: all of it one sign, where `out` is private; `own`: its gauge is its
    own; `latent`: a sign for each index but the last, of its own."""
    signs: bool = False
    """True where an element changes its sign with its unit's."""
    permutes: bool = True
    """False where a frozen basis tells the elements apart."""


class Constant(NamedTuple):
    """A trained tensor that starts at one number, and has no gauge that is known."""

    word: str
    """Its container, or the end of its key."""
    start: float
    option: str = ""
    """The option of the configuration that says another number."""


class Method(NamedTuple):
    """One row."""

    pairs: tuple[Pair, ...] = ()
    vectors: tuple[Vector, ...] = ()
    constants: tuple[Constant, ...] = ()
    silent: str = ""
    """Why nothing is tested, or what is not."""
    unbalanced: str = ""
    """Why balance is not asked of factors whose product enters."""
    starts: Callable[[Mapping[str, object]], bool] = lambda config: config.get("init_weights", True) is True
    """Whether the configuration leaves the start as the row has it."""


def _zero_if_asked(config: Mapping[str, object]) -> bool:
    """Return whether the start is zero, where the default is random."""
    return config.get("init_weights", False) is True


METHODS: dict[str, Method] = {
    "LOHA": Method(
        (
            Pair("hada_w1_a", "hada_w1_b", (True, False), displaced=(False, False), unless="hada_t1"),
            Pair("hada_w2_b", "hada_w2_a", (False, True), unless="hada_t2"),
        )
    ),
    "LOKR": Method(
        (
            Pair("lokr_w1_a", "lokr_w1_b", (True, False)),
            Pair("lokr_w2_a", "lokr_w2_b", (True, False), displaced=(False, False), unless="lokr_t2"),
        ),
        (Vector("lokr_w1", 0.0, "rows", signs=True, permutes=False),),
    ),
    "ADALORA": Method(
        # E scales latent dimensions, so it changes sign with A or with B; the term that keeps A and B orthogonal is the same for every gauge
        # and pulls both away from their start. E B^T dB = dA A^T E without it; its own gradients are S A and B S', S and S' symmetric and, near
        # orthogonality, of any direction: they leave r (r - 1) numbers, as many as are unknown, and nothing to compare
        (Pair("lora_E", "lora_A", (False, False), displaced=(True, True), balanced=False),),
        unbalanced="the term that keeps A and B orthogonal takes all that their balance through E could say",
        starts=lambda config: config.get("init_lora_weights", True) is True,
    ),
    "HIRA": Method((Pair("hira_B", "hira_A", (True, False)), Pair("hira_embedding_A", "hira_embedding_B", (False, True)))),
    "DELORA": Method((Pair("delora_B", "delora_A", (True, False), balanced=False),), unbalanced="the factors enter by their directions alone"),
    "IA3": Method(vectors=(Vector("ia3_l", 1.0, "feedforward"),), starts=lambda config: config.get("init_ia3_weights", True) is True),
    "BOFT": Method(vectors=(Vector("boft_s", 1.0, "out"),), constants=(Constant("boft_R", 0.0),)),
    # until peft 0.15 each output had a scale beside the rotation, as BOFT has
    "OFT": Method(
        vectors=(Vector("oft_s", 1.0, "out"),),
        constants=(Constant("oft_R", 0.0), Constant("oft_r", 0.0)),
        silent="rotations of a layer's input: where that is the residual stream, no module has a gauge of its own",
    ),
    "MISS": Method(vectors=(Vector("miss_block", 0.0, "last", signs=True),)),
    "BONE": Method(vectors=(Vector("bone_block", 0.0, "last", signs=True),)),
    "HRA": Method(vectors=(Vector("hra_u", 0.0, "own", signs=True, permutes=False),)),
    "BEFT": Method(vectors=(Vector("beft_bias", 0.0, "last", signs=True),)),
    "VERA": Method(
        vectors=(Vector("vera_lambda_b", 0.0, "out", signs=True, permutes=False),),
        constants=(Constant("vera_lambda_d", 0.1, "d_initial"),),
        silent="A and B are frozen and shared: of lambda_b only signs count, of lambda_d nothing",
    ),
    "PVERA": Method(
        vectors=(Vector("pvera_lambda_b", 0.0, "out", signs=True, permutes=False),),
        constants=(Constant("pvera_lambda_d", 0.1, "d_initial"),),
        silent=SHARED_BASIS,
    ),
    "RANDLORA": Method(vectors=(Vector("randlora_lambda", 0.0, "whole", signs=True),), silent=SHARED_BASIS),
    "VBLORA": Method(silent="the vector bank is shared by every module"),
    # a change that is linear in the tensor takes its sign from the values that it makes, whatever places or basis it uses
    "FOURIERFT": Method(vectors=(Vector("fourierft_spectrum", 0.0, "whole", signs=True),), silent=SHARED_TRANSFORM, starts=_zero_if_asked),
    "WAVEFT": Method(vectors=(Vector("waveft_spectrum", 0.0, "whole", signs=True),), silent=SHARED_TRANSFORM),
    "SHIRA": Method(vectors=(Vector("shira_weight", 0.0, "whole", signs=True),), silent="single elements, whose places the file does not tell"),
    "SUPERTUNING": Method(
        (Pair("supertuning_lora_B", "supertuning_lora_A", (True, False)),), (Vector("supertuning_values", 0.0, "whole", signs=True),)
    ),
    "C3A": Method(
        vectors=(Vector("c3a_kernel", 0.0, "stretches", signs=True),),
        silent="kernels that start at random, or lie along no attention's values",
        starts=_zero_if_asked,
    ),
    # road_1 turns two outputs by one angle, which changes its sign with either
    "ROAD": Method(
        vectors=(Vector("road_theta", 0.0, "out", signs=True, permutes=False),),
        constants=(Constant("road_alpha", 1.0),),
        silent="two angles for a pair of outputs, which share a sign, or outputs that are no attention's values",
        starts=lambda config: config.get("variant", "road_1") == "road_1" and config.get("init_weights", True) is True,
    ),
    # block (i, j) of the weight has latent dimensions of its own: rows of gralora_B, which gralora_A stores in another order
    "GRALORA": Method((Pair("gralora_B_general", "gralora_A_general", (True, False)),), (Vector("gralora_B", 0.0, "latent", signs=True),)),
    "GLORA": Method((Pair("Xd", "Xu", (True, False)),)),
    "TRAINABLE_TOKENS": Method(silent="rows of one tensor"),
    **dict.fromkeys(("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING"), Method(silent="a prompt has no partner in the model")),
    "LN_TUNING": Method(silent="gains of norms lie in the residual stream, which all layers share"),
    "CPT": Method(silent="a prompt has no partner in the model"),
    "CARTRIDGE": Method(silent="a prompt has no partner in the model"),
    "ADAPTION_PROMPT": Method(silent="a prompt, and one number that scales it"),
    "LILY": Method(silent="lora_B is shared by all layers, and with it the latent dimensions"),
    "POLY": Method(silent="skills of one module share its latent dimensions, which no test here adds up"),
    "PEANUT": Method(
        constants=(Constant("peanut_B", 0.0),), silent="an activation stands between its factors, and sees the sign of a latent dimension"
    ),
    "DEFT": Method(silent="its projection is made of all columns in their order, so that they cannot be exchanged"),
    **dict.fromkeys(
        ("PSOFT", "OSF", "ADAMSS", "FROD", "TINYLORA"), Method(silent="its parts stand in the order of the base weight's singular values")
    ),
    "UNILORA": Method(silent="one vector for all modules"),
    "SHADOW": Method(silent="a model of its own beside the layers"),
    "XLORA": Method(silent="gates that all adapters share"),
}


def silent_reason(adapter: Adapter) -> str:
    """Return why no tensor of an adapter is tested."""
    word = method_of(adapter)
    if word not in METHODS:
        return (
            "the weights contain no LoRA pairs or other factors that can be tested"
            if word in LIKE_LORA
            else f"{word} is not a method whose parts are known"
        )
    method = METHODS[word]
    if method.silent:
        return method.silent
    if "peft_type" in adapter.config and not method.starts(adapter.config):
        return f"{word}: this configuration does not start where its test has it"
    return f"{word}: none of these tensors lies where a test of it is known, such as along an attention's values"


def unbalanced_reason(adapter: Adapter) -> str:
    """Return why the factors of an adapter's method are not compared by their balance; empty where they are, or where there are no such."""
    if has_diagonal(adapter):
        return "a trained diagonal stands between the factors (KaSA)"
    method = METHODS.get(method_of(adapter))
    return method.unbalanced if method is not None else ""


def method_of(adapter: Adapter) -> str:
    """Return the adapter's method as PEFT calls it; where no configuration tells, by the words of LyCORIS' keys, which are PEFT's."""
    method_named = adapter.config.get("peft_type")
    words = {"LOHA": ".hada_w1_a", "LOKR": ".lokr_w"}
    found = None if method_named else next((method for method, word in words.items() if any(word in key for key in adapter.tensors)), None)
    return found or str(method_named or "LORA").upper()


def units_of(adapter: Adapter, *, previous: Adapter | None = None) -> list[Unit]:
    """Return what is tested of an adapter, in the order of its keys.

    Args:
        adapter: the trained weights.
        previous: an earlier adapter of the run, from which every tensor's displacement is known.
    """
    word = method_of(adapter)
    method = METHODS.get(word)
    if method is None and word not in LIKE_LORA:
        return []
    if method is None:
        return [*_lora(adapter, previous), *_biases(adapter), *whole_model(adapter)]
    known = "peft_type" in adapter.config and method.starts(adapter.config)  # LyCORIS starts other factors at zero than PEFT
    found = [unit for pair in method.pairs for unit in _pairs(adapter, pair, known, previous)]
    return found + [unit for vector in method.vectors for unit in _vectors(adapter, vector)] if known else found


def starts_of(adapter: Adapter) -> dict[str, KnownStart]:
    """Return what is known of the start of tensors, by key, but for the factors of a product: those are compared by their gauges."""
    word = method_of(adapter)
    method = METHODS.get(word)
    if method is None:
        known = word in LIKE_LORA and starts_at_zero(adapter) is None
        return {key: KnownStart(BIAS, 0.0) for key, _ in _keys(adapter, BIAS)} if known else {}
    if "peft_type" not in adapter.config or not method.starts(adapter.config):
        return {}
    found: dict[str, KnownStart] = {}
    for vector in method.vectors:
        found |= {key: KnownStart(vector.word, vector.start, vector.side == "own") for key, _ in _keys(adapter, vector.word)}
    for pair in method.pairs:
        if pair.displaced[0] and not pair.balanced:
            found |= {key: KnownStart(pair.zero, 0.0) for key, _ in _keys(adapter, pair.zero)}
    for constant in method.constants:
        value = adapter.config.get(constant.option, constant.start)
        if isinstance(value, (int, float)):
            found |= {key: KnownStart(constant.word, float(value)) for key, _ in _keys(adapter, constant.word)}
    return found


def _lora(adapter: Adapter, previous: Adapter | None) -> Iterator[Unit]:
    init = adapter.config.get("init_lora_weights")
    signs = isinstance(init, str) and init.partition("_niter")[0].lower() in NOT_EXCHANGEABLE
    known = starts_at_zero(adapter) is None or previous is not None
    balanced = not has_diagonal(adapter)
    for module in modules_of(adapter):
        yield Unit(
            module.prefix, module.zero, module.other, module.flipped, module.blocks,
            displaced=(known, previous is not None), balanced=balanced, group="signs" if signs else "signed",
        )  # fmt: skip


def _biases(adapter: Adapter) -> Iterator[Unit]:
    """Yield the biases of lora_B, which start at zero (`lora_bias`)."""
    if starts_at_zero(adapter) is None:
        yield from _vectors(adapter, Vector(BIAS, 0.0, "out", signs=True))


def _pairs(adapter: Adapter, pair: Pair, known: bool, previous: Adapter | None) -> Iterator[Unit]:
    keys = adapter.tensors
    for zero, prefix in _keys(adapter, pair.zero):
        other = f"{prefix}.{pair.other}{zero[len(prefix) + 1 + len(pair.zero) :]}"
        if other not in keys or (pair.unless and f"{prefix}.{pair.unless}" in keys):
            continue
        rank, same = (keys[key].shape[-1 if tall else 0] if len(keys[key].shape) > 1 else 0 for key, tall in zip((zero, other), pair.tall))
        if rank and rank == same:
            # of one row or column all gradients have one direction: both sides of balance are then one matrix times a number, of either sign
            balanced = pair.balanced and rank < min(math.prod(keys[zero].shape), math.prod(keys[other].shape))
            displaced = (known and pair.displaced[0]) or previous is not None, (known and pair.displaced[1]) or previous is not None
            yield Unit(prefix, zero, other, False, 1, displaced=displaced, balanced=balanced, tall=pair.tall)


def _vectors(adapter: Adapter, vector: Vector) -> Iterator[Unit]:
    for key, prefix in _keys(adapter, vector.word):
        shape = adapter.tensors[key].shape
        unit = Unit(prefix, key, "", False, 1, displaced=(True, False), balanced=False, start=vector.start, tall=(False, False))
        inside = vector.side == "feedforward" and len(shape) == 2 and shape[0] == 1
        last = inside or vector.side == "last"
        side = private_side(prefix, "in" if inside else "out", signs=vector.signs, permutes=vector.permutes)
        if vector.side == "own":
            if len(shape) == 2 and shape[1] % 2 == 0:
                yield replace(unit, halved=True, tall=(True, False), group="signs")
        elif vector.side == "rows":
            private = side.group is not None and len(shape) == 2
            yield replace(unit, group="signs", gauge=side.gauge) if private else replace(unit, flat=True)
        elif vector.side == "latent":
            yield replace(unit, group="signs", folded=True)
        elif vector.side in ("stretches", "whole"):
            if side.group is not None:
                yield replace(unit, group="signs", gauge=side.gauge, flat=vector.side == "whole")
        elif side.gauge and len(shape) in (1, 2) and (last or len(shape) == 1 or shape[1] == 1):
            most = side.most(shape[-1] if last else shape[0])
            yield replace(unit, group=side.group if most else None, gauge=side.gauge, most=most, tall=(last, False))


def _keys(adapter: Adapter, word: str) -> Iterator[tuple[str, str]]:
    """Yield (key, module's path) of the tensors of a container."""
    for key in adapter.tensors:
        before, found, behind = f".{key}".rpartition(f".{word}")
        if found and behind in ("", ".weight") and before:
            yield key, before[1:]
