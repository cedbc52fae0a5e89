"""Pairs of a whole transformer's own weights that enter its function as a product: their gauges need no adapter and no base model.

Values and output of an attention: O_h V_h for each head, so signed permutations of a head's dimensions are nobody else's, and
O_h^T dO_h = dV_h V_h^T. Signs alone are used: they are free whatever the heads' size. Where several query heads share a head of values, their
columns of O add up.

Up and down of a gated block, down (act(gate x) * up x): neurons may stand in any order, and up_j, down_j change sign and scale together, so that
<down_j, d down_j> = <d up_j, up_j> for each neuron. A gate has no scale, and without one the activation sees the sign: those are not tested.

A pretrained start is as good as a random one: its training turned its own gauges along, and those of different layers were drawn apart. Not so
where layers are copies of others (depth up-scaling), which `starts` sees in their numbers, or one tensor (ALBERT).

Not tested: norms, embeddings and heads lie in the residual stream, which all layers share; queries and keys exchanged leave no trace in either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ostate.core.naming import Adapter

from .units import Group, Unit

MOST = 32
"""Dimensions of an attention's values, and neurons of a block, that are compared."""


class Product(NamedTuple):
    """Two layers whose weights enter as a product."""

    behind: str
    """Ending of the layer that takes up what the other one makes: (n, r)."""
    before: str
    """Ending of the other layer, (r, n), with the same path before it."""
    group: Group
    gate: str = ""
    """A layer that must be there too."""


PRODUCTS = (
    Product("o_proj", "v_proj", "signs"),
    Product("out_proj", "v_proj", "signs"),
    Product("self_attn.dense", "self_attn.v_proj", "signs"),
    Product("attention.output.dense", "attention.self.value", "signs"),
    Product("attention.output.dense", "attention.attention.value", "signs"),
    Product("to_out.0", "to_v", "signs"),
    Product("out_lin", "v_lin", "signs"),
    Product("SelfAttention.o", "SelfAttention.v", "signs"),
    Product("EncDecAttention.o", "EncDecAttention.v", "signs"),
    Product("down_proj", "up_proj", "neurons", gate="gate_proj"),
    Product("DenseReluDense.wo", "DenseReluDense.wi_1", "neurons", gate="DenseReluDense.wi_0"),
)


def whole_model(adapter: Adapter) -> Iterator[Unit]:
    """Yield the products of a whole model's weights; none of an adapter's."""
    if adapter.kind != "model":
        return
    for product in PRODUCTS:
        ending = re.compile(rf"(?:^|\.){re.escape(product.behind)}\.weight$")
        for key, ref in adapter.tensors.items():
            found = ending.search(key)
            if found is None:
                continue
            prefix = key[: found.start()]
            near = f"{prefix}." if prefix else ""
            other, gate = f"{near}{product.before}.weight", f"{near}{product.gate}.weight"
            if other not in adapter.tensors or (product.gate and gate not in adapter.tensors):
                continue
            heads = heads_of(ref.shape, adapter.tensors[other].shape, adapter)
            if heads is not None:
                yield Unit(
                    near, key, other, False, 1, displaced=(False, False), group=product.group, tall=(True, False), most=MOST, heads=heads
                )  # fmt: skip


def heads_of(behind: tuple[int, ...], before: tuple[int, ...], adapter: Adapter) -> tuple[int, int] | None:
    """Return (query heads a head of values, a head's dimensions); None where the shapes do not fit, or the size of a head is not known."""
    if len(behind) != 2 or len(before) != 2 or not before[0] or behind[1] % before[0]:
        return None
    shared, size = behind[1] // before[0], adapter.facts.get("head_dim")
    if shared == 1:
        return 1, 0
    return (shared, size) if isinstance(size, int) and size > 0 and before[0] % size == 0 else None
