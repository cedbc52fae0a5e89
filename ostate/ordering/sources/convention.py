"""The order that a model's modules have by convention, where no base configuration is at hand: layers by number, modules as their authors wrote them.

A convention is never written down as a name without the numbers' word. Where a module is not in the tables, there is no claim.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cmp_to_key

from ostate.core.names import ADAPTER_CONTAINERS
from ostate.core.naming import Adapter, Claim, Question

from ..grouping.refute import Refused, refused
from .from_keys import claims_of_keys, trained_keys

PLACES: tuple[tuple[str, ...], ...] = (
    ("embeddings", "embed_tokens", "wte", "shared", "word_embeddings", "tok_embeddings", "prompt_encoder"),
    ("embed_positions", "wpe", "position_embeddings"),
    ("bert", "roberta", "distilbert", "electra", "vit", "model", "transformer", "gpt_neox", "bart", "mpnet", "deberta"),
    ("text_model", "vision_tower", "vision_model", "visual", "conv1", "conv2", "conv_in"),
    ("multi_modal_projector", "aligner", "connector"),
    ("encoder", "down_blocks"),
    ("decoder", "up_blocks", "mid_block"),
    ("layers", "layer", "h", "block", "blocks", "transformer_blocks", "language_model"),
    ("self_attn", "attention", "attn", "SelfAttention", "self_attention", "attn1", "mixer", "linear_attn"),
    ("encoder_attn", "EncDecAttention", "crossattention", "cross_attn", "attn2"),
    ("intermediate", "mlp", "feed_forward", "ffn", "ff", "DenseReluDense", "block_sparse_moe"),
    ("output",),
    ("pooler",),
    ("pre_classifier",),
    ("lm_head", "cls", "vocab_transform", "classifier", "score", "qa_outputs", "v_head", "embed_out", "conv_out"),
)
"""Components of a name, in the order in which models hold them. Those of one row never lie side by side, but for the pairs of `BESIDE`."""
BESIDE: tuple[tuple[str, ...], ...] = (("down_blocks", "up_blocks", "mid_block"), ("vision_tower", "language_model"))

FAMILIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    # name, what the keys must look like, linear layers within a block in the order of their definition
    ("OPT, BART, Whisper, CLIP", r"\.(decoder|encoder)\.layers\.\d+\.(self_attn|encoder_attn|fc1|fc2)",
     ("self_attn", "k_proj", "v_proj", "q_proj", "out_proj", "encoder_attn", "fc1", "fc2")),
    ("GPT-J, GPT-Neo", r"\.h\.\d+\.attn\.(attention\.)?[kvq]_proj", ("k_proj", "v_proj", "q_proj", "out_proj", "fc_in", "c_fc", "fc_out", "c_proj")),
    ("GPT-2", r"\.h\.\d+\.(attn|mlp|crossattention)\.(c_attn|c_proj|c_fc|q_attn)",
     ("attn", "crossattention", "mlp", "c_attn", "q_attn", "c_fc", "c_proj")),
    ("NeoX, Falcon, Bloom", r"\.query_key_value\.|\.dense_h_to_4h\.", ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    ("T5", r"\.block\.\d+\.layer\.\d+\.", ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")),
    ("DistilBERT", r"\.[qkv]_lin\.", ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2")),
    ("BERT, RoBERTa, ViT", r"\.attention\.(attention\.|self\.)?(query|key|value)\.|\.attention\.output\.dense\.",
     ("attention", "crossattention", "intermediate", "self", "output", "query", "key", "value", "dense", "out_proj")),
    ("Phi-3", r"\.self_attn\.qkv_proj\.", ("o_proj", "qkv_proj", "gate_up_proj", "down_proj")),
    ("Phi", r"\.self_attn\.dense\.", ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
    ("diffusers", r"\.to_[qkv]\.", ("to_q", "to_k", "to_v", "to_out", "net")),
    ("torchtune", r"layers\.\d+\.attn\.q_proj", ("q_proj", "k_proj", "v_proj", "output_proj", "w1", "w2", "w3")),
    ("Llama and its kin", r"\.layers\.\d+\.(self_attn|mlp)\.", ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
)  # fmt: skip
_CONTAINER = {word: rank for rank, word in enumerate(("base_layer", *ADAPTER_CONTAINERS))}


def convention(question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return what the module order of the architecture says, cut by every trainer's rule; nothing where a module is unknown."""
    if question.adapter is None or question.adapter.kind == "model":
        return [], []
    found = ordered_keys(question.adapter)
    if isinstance(found, str):
        return [], [refused("convention", "module order", found)]
    return claims_of_keys("convention", found[0], found[1], question)


def ordered_keys(adapter: Adapter) -> tuple[str, list[str]] | str:
    """Return the convention's name and the trained keys in its order, or why there is none."""
    family = family_of(adapter.tensors)
    if family is None:
        return "the architecture is not in the table of conventions"
    try:
        return f"module order of {family[0]}", in_order(trained_keys(adapter), family[1])
    except LookupError as unknown:
        return f"no convention orders {unknown.args[0]}"


def family_of(keys: Iterable[str]) -> tuple[str, tuple[str, ...]] | None:
    """Return the family that the keys look like, and its linear layers in order."""
    text = "\n".join(keys)
    return next(((name, words) for name, pattern, words in FAMILIES if re.search(pattern, text)), None)


def in_order(keys: Sequence[str], words: Sequence[str]) -> list[str]:
    """Return the keys in the order in which a model of this family defines them.

    Raises:
        LookupError: two modules lie side by side whose order the tables do not know.
    """
    rank = {word: index for index, word in enumerate(words)}

    def compare(one: str, other: str) -> int:
        left, right = one.split("."), other.split(".")
        for a, b in zip(left, right):
            if a != b:
                return _before(a, b, rank)
        return len(left) - len(right)

    return sorted(keys, key=cmp_to_key(compare))


def _before(one: str, other: str, rank: dict[str, int]) -> int:
    """Return a negative number when `one` is defined before `other`, its sibling."""
    if one.isdigit() and other.isdigit():
        return int(one) - int(other)
    if one in rank and other in rank:
        return rank[one] - rank[other]
    if one in _CONTAINER and other in _CONTAINER:
        return _CONTAINER[one] - _CONTAINER[other]
    for row in BESIDE:
        if one in row and other in row:
            return row.index(one) - row.index(other)
    places = [_place(one), _place(other)]
    if None not in places and places[0] != places[1]:
        return (places[0] or 0) - (places[1] or 0)
    raise LookupError(f"{one!r} and {other!r}")


def _place(word: str) -> int | None:
    return next((index for index, row in enumerate(PLACES) if word in row), None)
