"""What short real runs prove: convolutions, Conv1D, embeddings, whole modules, one step, moments of 8 bits, weights of 16."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import numpy as np
import pytest

import ostate
from ostate.evidence.ask import verify
from ostate.evidence.recover import recover
from ostate.read import adapters
from ostate.read.weights import base_weights
from tests import trained
from tests.evidence import runs
from tests.evidence.numbers import Known
from tests.records import ArraySlot, replace

CAUSAL = {"task_type": "CAUSAL_LM"}
KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any], int]] = {
    "conv2d": (runs.convolutions, {"target_modules": [*(f"body.{index}" for index in range(6)), "narrow", "wide"]}, 20),
    "conv1d": (lambda: runs.language_model(runs.gpt2), {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True, **CAUSAL}, 20),
    "embedding": (lambda: runs.language_model(lambda: trained.llama(4)), {"target_modules": ["embed_tokens", "q_proj", "v_proj"], **CAUSAL}, 40),
}
"""Kind of layer -> what makes the model, how LoRA is laid on it, steps."""


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    make, lora, steps = KINDS[request.param]
    return runs.known(runs.train(tmp_path_factory.mktemp(request.param), make(), lora, steps=steps))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """q_proj and v_proj of a Llama."""
    return _llama(tmp_path_factory.mktemp("plain"), steps=20)


def _llama(folder: Path, **more: Any) -> Known:
    return runs.known(runs.train(folder, runs.language_model(lambda: trained.llama(4)), {"target_modules": ["q_proj", "v_proj"], **CAUSAL}, **more))


def assert_a_swap_is_contradicted(known: Known, one: int, two: int, **more: Any) -> None:
    found = verify(known.swapped(one, two), known.raw, known.adapter, **more)
    assert found.verdict == "contradicted"
    assert {position for position, _, _ in found.contradictions} == {one, two}


def test_every_factor_of_every_kind_of_layer_is_proven(run):
    assert verify(run.keys, run.raw, run.adapter).proven == set(run.with_state)
    shuffled = run.shuffled(1)
    found = recover(shuffled.raw, shuffled.adapter)
    assert found.proven == set(shuffled.with_state)
    assert list(found.order) == list(shuffled.keys)


def test_a_swap_in_every_kind_of_layer_is_contradicted(run):
    swaps = run.swaps()
    for at in np.random.default_rng(0).choice(len(swaps), 6, replace=False):
        assert_a_swap_is_contradicted(run, *swaps[at])


def test_one_step_proves_lora_b_and_says_nothing_of_lora_a(tmp_path):
    """lora_B was zero when the first gradient came, so lora_A's was zero too: its second moment shows it."""
    known = _llama(tmp_path, steps=1)
    of_b = {position for position in known.with_state if "lora_B" in str(known.keys[position])}
    of_a = sorted(set(known.with_state) - of_b)
    assert not any(known.raw.entries[position].slots["exp_avg_sq"].read().any() for position in of_a)
    found = verify(known.keys, known.raw, known.adapter)
    assert found.proven == of_b
    assert_a_swap_is_contradicted(known, *sorted(of_b)[:2])
    found = verify(known.swapped(*of_a[:2]), known.raw, known.adapter)
    assert found.proven == of_b
    assert not found.contradictions


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that trains the norms and the head whole, beside LoRA: the folder, and what is known of it."""
    model = runs.language_model(lambda: trained.llama(3, hidden_size=64, intermediate_size=96))
    lora = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["input_layernorm", "post_attention_layernorm", "lm_head"], **CAUSAL}
    folder = runs.train(tmp_path_factory.mktemp("whole"), model, lora, steps=12, earlier=6)
    return folder, runs.known(folder)


def beginnings(folder: Path) -> dict[str, dict[str, Any]]:
    return {"previous": {"previous": adapters.read_adapter(str(folder / "earlier"))}, "base": {"base": base_weights(str(folder / "base"))}}


@pytest.mark.parametrize("by", ["previous", "base"])
def test_tensors_outside_lora_are_proven_by_where_they_started(whole, by):
    folder, known = whole
    norms = [position for position in known.with_state if "layernorm" in str(known.keys[position])]
    assert len(norms) == 6
    assert not verify(known.keys, known.raw, known.adapter).proven & set(norms)
    start = beginnings(folder)[by]
    found = verify(known.keys, known.raw, known.adapter, **start)
    assert found.proven == set(known.with_state)
    assert "start" in found.used
    shuffled = known.shuffled(2)
    assert list(recover(shuffled.raw, shuffled.adapter, **start).order) == list(shuffled.keys)
    for one, two in pairwise(norms):
        assert_a_swap_is_contradicted(known, one, two, **start)


def test_a_given_order_is_proven_as_far_as_no_other_order_of_the_family_is_left_open(whole, tmp_path):
    """Three layers of rank 4: layers in descending order would exchange two modules only, which is 5.2 digits at most."""
    folder, _ = whole
    (tmp_path / "order.txt").write_text("\n".join(runs.names(folder)) + "\n")
    found = ostate.verify(str(folder / "optimizer.pt"), adapter=str(folder), order=str(tmp_path / "order.txt"))
    assert found.verdict == "partial"
    assert found.evidence is not None
    assert ("layers in descending order" in dict(found.evidence.open)) is True


def test_moments_of_eight_bits_prove_the_same_names_by_less(plain, tmp_path):
    known = _llama(tmp_path, steps=20, optimizer=partial(bnb.optim.AdamW8bit, min_8bit_size=64))
    assert {slot.encoding for entry in known.raw.entries for slot in entry.slots.values()} == {"bitsandbytes-8bit"}
    assert_noise_flips_nothing(known, plain)


def test_adapters_of_sixteen_bits_prove_the_same_names_by_less(plain):
    rounded = {key: ArraySlot((ref.read().view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32)) for key, ref in plain.adapter.tensors.items()}
    assert_noise_flips_nothing(replace(plain, adapter=replace(plain.adapter, tensors=rounded)), plain)


def test_the_coarser_the_moments_the_less_is_proven_and_nothing_wrongly(plain):
    """Blocks of 64 values cut to so many bits: fewer names are proven in the end, and a swap is never believed."""
    proven = []
    for bits in (8, 6, 4, 3, 2):
        entries = tuple(replace(e, slots={n: ArraySlot(_cut(s.read(), bits)) for n, s in e.slots.items()}) for e in plain.raw.entries)
        coarse = replace(plain, raw=replace(plain.raw, entries=entries))
        found = verify(coarse.keys, coarse.raw, coarse.adapter)
        assert not found.contradictions
        proven.append(len(found.proven))
        for one, two in coarse.swaps()[::9]:
            assert not verify(coarse.swapped(one, two), coarse.raw, coarse.adapter).proven & {one, two}
    assert proven[0] == len(plain.with_state)
    assert proven[-1] < proven[0]


def _cut(values: np.ndarray, bits: int) -> np.ndarray:
    blocks = values.reshape(-1, 64)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 0.5) + 1e-30
    return np.asarray((np.round(blocks / scale) * scale).reshape(values.shape), np.float32)


def assert_noise_flips_nothing(noisy: Known, exact: Known) -> None:
    found, before = (verify(known.keys, known.raw, known.adapter) for known in (noisy, exact))
    assert found.proven == before.proven == set(exact.with_state)
    assert found.margin is not None
    assert before.margin is not None
    assert found.margin <= before.margin + 1
    shuffled = noisy.shuffled(3)
    assert list(recover(shuffled.raw, shuffled.adapter).order) == list(shuffled.keys)
    for one, two in noisy.swaps()[::7]:
        assert_a_swap_is_contradicted(noisy, one, two)
