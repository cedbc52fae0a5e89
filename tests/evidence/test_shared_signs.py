"""With base weights at hand, what moved is told by signs; tensors that share their signs prove nothing against being exchanged."""

from __future__ import annotations

import pytest

from ostate.core.naming import Claim, Question
from ostate.evidence.comparison import Comparison
from ostate.ordering.family import family_of
from ostate.read import adapters
from tests import trained
from tests.evidence import runs
from tests.evidence.method_runs import train_whole


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    first, last = train_whole(tmp_path_factory.mktemp("whole"), lambda: trained.llama(6, num_key_value_heads=2), [1, 20], lr=1e-3)
    return runs.known(last), adapters.read_adapter(str(first))


def test_embeddings_and_head_exchanged_are_left_open_and_layers_are_not(run):
    known, earlier = run
    claim = Claim(source="given", rule="given", names=known.keys, keys=known.keys)
    found = Comparison(known.raw, known.adapter, previous=earlier).test(claim, family_of(claim, (), Question(raw=known.raw, adapter=known.adapter)))
    assert {what for what, _ in found.open} == {
        "embed_tokens and lm_head exchanged in every layer",
        "input_layernorm and post_attention_layernorm exchanged in every layer",
    }
    swap = {"model.embed_tokens.weight": "lm_head.weight", "lm_head.weight": "model.embed_tokens.weight"}
    keys = tuple(swap.get(str(key), key) for key in known.keys)
    claim = Claim(source="given", rule="given", names=keys, keys=keys)
    wrong = Comparison(known.raw, known.adapter, previous=earlier).test(claim, family_of(claim, (), Question(raw=known.raw, adapter=known.adapter)))
    assert not {p for p in wrong.proven if keys[p] != known.keys[p]}
