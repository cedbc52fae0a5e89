"""Signs of what moved from a known start: an exact null, whichever of them are tied, and silence where there is none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ostate.core.naming import Adapter
from ostate.core.state import Entry, Group, RawState
from ostate.evidence.look import Source
from ostate.evidence.unpaired import known_starts, ties
from tests.records import ArraySlot

SIZE, SHARED, GROUPS, HIDDEN, NEURONS = 4, 2, 2, 8, 6
"""Of a head; query heads that share keys and values; heads of keys; the stream; neurons of a block."""
SHAPES = {
    "self_attn.q_proj": (SIZE * SHARED * GROUPS, HIDDEN),
    "self_attn.k_proj": (SIZE * GROUPS, HIDDEN),
    "self_attn.v_proj": (SIZE * GROUPS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, SIZE * SHARED * GROUPS),
    "mlp.gate_proj": (NEURONS, HIDDEN),
    "mlp.up_proj": (NEURONS, HIDDEN),
    "mlp.down_proj": (HIDDEN, NEURONS),
}
DIMENSIONS = np.arange(SIZE * GROUPS).reshape(GROUPS, 1, SIZE)
TURNED = {
    # what has one sign: a head of keys and the queries of its group, a dimension of values for all query heads that read it, a neuron
    "self_attn.q_proj": (0, np.repeat(np.arange(GROUPS), SIZE * SHARED)),
    "self_attn.k_proj": (0, np.repeat(np.arange(GROUPS), SIZE)),
    "self_attn.v_proj": (0, DIMENSIONS.reshape(-1)),
    "self_attn.o_proj": (1, np.broadcast_to(DIMENSIONS, (GROUPS, SHARED, SIZE)).reshape(-1)),
    "mlp.up_proj": (0, np.arange(NEURONS)),
    "mlp.down_proj": (1, np.arange(NEURONS)),
}


def layer(seed: int, *, copies: bool = False) -> tuple[Adapter, Adapter]:
    """Return the weights of a whole model of one or two layers, the second a copy of the first, and what they were at first."""
    rng = np.random.default_rng(seed)
    began = {kind: rng.standard_normal(shape).astype(np.float32) for kind, shape in SHAPES.items()}
    start = {f"layers.{i}.{kind}.weight": values for i in range(1 + copies) for kind, values in began.items()}
    moved = {key: values + 0.1 * rng.standard_normal(values.shape).astype(np.float32) for key, values in start.items()}
    both = [{key: ArraySlot(values) for key, values in tensors.items()} for tensors in (moved, start)]
    return whole(both[0]), whole(both[1])


def whole(tensors: dict[str, ArraySlot], **facts: int) -> Adapter:
    """Return a whole model's weights."""
    return Adapter(path="model", file="model.safetensors", kind="model", tensors=tensors, facts=facts or {"head_dim": SIZE})


def state(*moments: np.ndarray) -> RawState:
    """Return a state of first moments."""
    entries = tuple(
        Entry(position=i, key=i, group=0, slots={"momentum_buffer": ArraySlot(m)}, step=9.0, shape=m.shape) for i, m in enumerate(moments)
    )
    return RawState(source="optimizer.pt", layout="torch", files=(), groups=(Group(0, tuple(range(len(moments)))),), entries=entries, optimizer="sgd")


def digits(key: str, weights: Adapter, start: Adapter, moment: np.ndarray) -> dict[int, float]:
    """Return what is said of these first moments under the key."""
    return known_starts(Source(state(moment), weights), [key], [0], set(), start, None)


@pytest.mark.parametrize("kind", TURNED)
def test_moments_of_another_layer_say_as_much_for_as_against_whichever_signs_are_tied(kind):
    """Every choice of the layer's private signs is as likely: the mean of the e-value over all of them is 1."""
    weights, start = layer(0)
    key = f"layers.0.{kind}.weight"
    axis, tied = TURNED[kind]
    rng = np.random.default_rng(1)
    moved = weights.tensors[key].values - start.tensors[key].values
    alike = -moved * rng.uniform(0.5, 2, moved.shape).astype(np.float32)  # a layer that was pushed the same way, as one with the same data may be
    found = []
    for signs in itertools.product((1, -1), repeat=tied.max() + 1):
        turned = np.array(signs, np.float32)[tied]
        found.append(10 ** digits(key, weights, start, alike * (turned[:, None] if axis == 0 else turned))[0])
    assert np.mean(found) == pytest.approx(1, rel=1e-4)
    assert max(found) > 1.5  # its own moments are told from these, as far as the number of signs goes


def test_a_gate_and_heads_of_unknown_size_say_nothing():
    weights, start = layer(2)
    key = "layers.0.mlp.gate_proj.weight"
    assert digits(key, weights, start, start.tensors[key].values - weights.tensors[key].values) == {}
    unknown = whole(weights.tensors, vocab_size=5)
    assert not any(ties(f"layers.0.self_attn.{kind}.weight", unknown) for kind in ("q_proj", "k_proj", "o_proj"))


def test_a_matrix_outside_the_layers_speaks_where_no_other_has_its_shape():
    weights, _ = layer(3)
    extra = ArraySlot(np.ones((5, HIDDEN), np.float32))
    head = whole({**weights.tensors, "lm_head.weight": extra})
    assert [axis for axis, _ in ties("lm_head.weight", head)] == [0, 1]
    both = whole({**head.tensors, "model.embed_tokens.weight": extra})
    assert ties("lm_head.weight", both) == []


def test_layers_that_are_copies_of_one_another_say_nothing():
    weights, start = layer(4, copies=True)
    keys = [f"layers.{i}.mlp.up_proj.weight" for i in range(2)]
    raw = state(*(start.tensors[key].values - weights.tensors[key].values for key in keys))
    assert known_starts(Source(raw, weights), keys, [0, 1], set(), start, None) == {}
    assert known_starts(Source(raw, weights), [keys[0], None], [0, 1], set(), start, None)[0] > 1
