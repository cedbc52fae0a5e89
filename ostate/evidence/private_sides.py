"""Which side of a linear layer is private to it: its units could stand in any order and the model would be the same.

The neurons of a feed-forward block may stand in any order, and the dimensions of an attention head's values in any order within the head: the
layer before and the layer behind them are turned alike, and the model stays the same. Its start has independent elements of one law, and so it
is as likely in every order; the base model's own training carried each order along. So each block has a gauge of its own. The residual stream
is shared by all layers: neither side of it is private. Queries and keys may carry positions (rotary): they are not used here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .units import Group

_VALUES = re.compile(r"(?:^|\.)(?:v_proj|value|v_lin|to_v|value_proj)$")
_ATTENTION = re.compile(r"(?:^|\.)(?:[qkv]_proj|o_proj|out_proj|query|key|value|[qkv]_lin|out_lin|to_[qkv]|to_out(?:\.0)?|attention\.output\.dense)$")
_HIDDEN = re.compile(r"(?:^|\.)(?:up_proj|gate_proj|fc1|c_fc|DenseReluDense\.wi(?:_[01])?|intermediate\.dense|lin1)$")
_BEHIND = re.compile(r"(?:^|\.)(?:down_proj|fc2|DenseReluDense\.wo|dense_4h_to_h|mlp\.c_proj|lin2|(?<!attention\.)output\.dense)$")
"""Last words of modules, in transformers and timm: what makes values, all of an attention, what makes neurons, what takes them up."""
WITHIN = 4
"""Dimensions that are exchanged among themselves: every head has a multiple of them."""
MOST = 128
"""Units of a private side that are compared at most: 32 blocks."""


class PrivateSide(NamedTuple):
    """A side of a layer."""

    group: Group | None
    """What may be done to its units; None: nothing, or it is not known."""
    gauge: str
    """What has this gauge: the values of an attention, the neurons of a block."""

    def most(self, length: int) -> int:
        """Return how many of a tensor's units to compare: of neurons half at most, since gate and up may lie in one tensor, with one order."""
        if self.group is None:
            return 0
        return min(MOST, length if self.gauge.endswith(VALUES) else length // 2) // WITHIN * WITHIN


VALUES, NEURONS = ":values", ":neurons"


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
    if side == "out" and _VALUES.search(path):
        return PrivateSide("signed" if signs and permutes else "signs" if signs else "permuted" if permutes else None, parent + VALUES)
    if (side == "out" and _HIDDEN.search(path)) or (side == "in" and _BEHIND.search(path)):
        return PrivateSide("permuted" if permutes else None, layer + NEURONS)  # the sign of a neuron is free only where no activation sees it
    if _ATTENTION.search(path):
        return PrivateSide(None, "")
    return PrivateSide(None, layer + NEURONS)  # may be the same neurons under another name: known to be no origin that tells
