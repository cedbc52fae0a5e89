"""Which side of a linear layer is private to it: its units could stand in any order and the model would be the same.

The neurons of a feed-forward block may stand in any order, and the dimensions of an attention head's values in any order within the head: the
layer before and the layer behind them are turned alike, and the model stays the same. Its start has independent elements of one law, and so it
is as likely in every order; the base model's own training carried each order along. So each block has a gauge of its own. The residual stream
is shared by all layers: neither side of it is private. Queries and keys may carry positions (rotary), which few names of modules tell: they are
used of T5 and its like alone, whose attention adds a bias for the distance and nothing else. Theirs is one order, since a score is their product.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .units import Group

_VALUES = re.compile(r"(?:^|\.)(?:v_proj|v_lin|to_v)$")
_VALUES_OF_ATTENTION = frozenset({"value", "value_proj", "v"})
"""Last words that mean values below an attention alone: RWKV's `feed_forward.value` gives back to the residual stream."""
_T5 = r"(?:^|\.)(?:Self|EncDec|LocalSelf|TransientGlobalSelf)Attention"
"""Attentions of T5, MT5, UMT5, LongT5, Switch Transformers, Pop2Piano (transformers)."""
_QUERIES = re.compile(_T5 + r"\.[qk]$")
_ATTENTION = re.compile(r"(?:^|\.)(?:[qkv]_proj|o_proj|out_proj|query|key|[qkv]_lin|out_lin|to_[qkv]|to_out(?:\.0)?|attention\.output\.dense)$")
_T5_OUTPUT = re.compile(_T5 + r"\.o$")
_HIDDEN = re.compile(r"(?:^|\.)(?:up_proj|gate_proj|fc1|c_fc|DenseReluDense\.wi(?:_[01])?|intermediate\.dense|lin1)$")
_BEHIND = re.compile(r"(?:^|\.)(?:down_proj|fc2|DenseReluDense\.wo|dense_4h_to_h|mlp\.c_proj|lin2|(?<!attention\.)output\.dense)$")
"""Last words of modules, in transformers and timm, beside those above of what makes values: all of an attention, what makes neurons, what takes
them up."""
WITHIN = 4
"""Dimensions that are exchanged among themselves: every head has a multiple of them."""
MOST = 128
"""Units of a private side that are compared at most: 32 blocks."""


class PrivateSide(NamedTuple):
    """A side of a layer."""

    group: Group | None
    """What may be done to its units; None: nothing, or it is not known."""
    gauge: str
    """What has this gauge: the values of an attention, its queries and keys, the neurons of a block."""

    def most(self, length: int) -> int:
        """Return how many of a tensor's units to compare: of neurons half at most, since gate and up may lie in one tensor, with one order."""
        if self.group is None:
            return 0
        return min(MOST, length // 2 if self.gauge.endswith(NEURONS) else length) // WITHIN * WITHIN


VALUES, QUERIES, NEURONS = ":values", ":queries", ":neurons"


def private_side(path: str, side: str, *, signs: bool, permutes: bool) -> PrivateSide:
    """Return what is known of one side of a linear layer.

    Args:
        path: of the layer.
        side: `out` or `in`.
        signs: what lies along it changes sign with its unit.
        permutes: it may stand in another order.
    """
    parent = path.rpartition(".")[0]
    numbers = [at.end() for at in re.finditer(r"(?:^|\.)\d+(?=\.)", path)]
    layer = path[: numbers[-1]] if numbers else ""
    gauge = VALUES if _makes_values(path) else QUERIES if _QUERIES.search(path) else ""
    if side == "out" and gauge:
        return PrivateSide("signed" if signs and permutes else "signs" if signs else "permuted" if permutes else None, parent + gauge)
    if (side == "out" and _HIDDEN.search(path)) or (side == "in" and _BEHIND.search(path)):
        return PrivateSide("permuted" if permutes else None, layer + NEURONS)  # the sign of a neuron is free only where no activation sees it
    if gauge or _ATTENTION.search(path) or _T5_OUTPUT.search(path):
        return PrivateSide(None, "")
    return PrivateSide(None, layer + NEURONS)  # may be the same neurons under another name: known to be no origin that tells


def _makes_values(path: str) -> bool:
    if _VALUES.search(path):
        return True
    *_, block, word = ("", "", *path.split("."))
    return word in _VALUES_OF_ATTENTION and (block == "self" or "att" in block.lower())
