"""The moments of one tensor of two layers exchanged under names that kept their places: both names stand apart, and nobody's do in a healthy run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ostate.commands.repair import repair
from ostate.core.naming import Claim, Evidence, Question
from ostate.core.state import RawState
from ostate.evidence import displaced, methods
from ostate.evidence.comparison import Comparison
from ostate.evidence.look import Source
from ostate.ordering.family import family_of
from tests import real, trained
from tests.evidence import method_nets, method_runs, runs
from tests.evidence.numbers import Known

WORDS = {
    "IA3": "ia3_l", "VERA": "vera_lambda_b", "MISS": "miss_block", "HRA": "hra_u", "BEFT": "beft_bias", "ROAD": "road_theta", "SHIRA": "shira_weight",
    "GRALORA": "gralora_B", "LOKR": "lokr_w1",
}  # fmt: skip
REAL = {
    "ia3": ("k_proj.ia3_l", 3),
    "boft": ("q_proj.boft_R", 3),
    "hra": ("q_proj.hra_u", 3),
    "lora_bias": ("q_proj.lora_B.bias", 3),
    "road": ("q_proj.road_alpha", 3),
    "vera": ("q_proj.vera_lambda_d", 3),
    "delora": ("q_proj.delora_B", 16),
    "lora": ("q_proj.lora_A", 40),
    "loha": ("q_proj.hada_w2_a", 40),
    "hira": ("q_proj.hira_A", 40),
}
"""Method -> (one of its tensors, at which step): a lone tensor, or one factor of a product."""


def exchanged(raw: RawState, one: int, two: int) -> RawState:
    """Return the state in which two positions hold each other's moments."""
    entries = list(raw.entries)
    entries[one], entries[two] = entries[one]._replace(slots=entries[two].slots), entries[two]._replace(slots=entries[one].slots)
    return raw._replace(entries=tuple(entries))


def found_in(raw: RawState, known: method_nets.Saved | Known, keys: Sequence[str | None]) -> frozenset[int]:
    source = Source(raw, known.adapter)
    return displaced.misplaced_values(source, keys, range(len(keys)), methods.starts_of(known.adapter))


@pytest.mark.parametrize("steps", [2, 12])
@pytest.mark.parametrize("law", WORDS)
def test_nearly_every_exchange_is_seen_and_no_healthy_run_is_named(law: str, steps: int) -> None:
    seen = 0
    for run in method_nets.networks(law, 20, layers=6, steps=steps, seed=1):
        assert not found_in(run.raw, run, run.keys)
        one, two = (at for at, key in enumerate(run.keys) if WORDS[law] in key and any(f"layers.{layer}.self_attn" in key for layer in (1, 4)))
        found = found_in(exchanged(run.raw, one, two), run, run.keys)
        assert found <= {one, two}
        seen += found == {one, two}
    assert seen >= 14


def ask(raw: RawState, known: Known, **started: Any) -> Evidence:
    claim = Claim(source="recorded", rule="recorded", names=known.keys, keys=known.keys)
    return Comparison(raw, known.adapter, **started).test(claim, family_of(claim, (), Question(raw=raw, adapter=known.adapter)))


@pytest.mark.parametrize("name", REAL)
def test_one_tensor_of_two_layers_exchanged_is_named_and_not_proven(name: str, tmp_path) -> None:
    word, step = REAL[name]
    (folder,) = method_runs.train(tmp_path, method_runs.METHODS[name](), [step], layers=8)
    known = runs.known(folder)
    assert not ask(known.raw, known).apart
    at = [position for position, key in enumerate(known.keys) if word in str(key)]
    for one, two in ((1, 4), (2, 6)):
        moved = {at[one], at[two]}
        found = ask(exchanged(known.raw, at[one], at[two]), known)
        assert moved <= set(found.apart)
        assert not moved & found.proven


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Known, Known]:
    """Return a whole model after six steps, and as it was five steps before."""
    begun, folder = method_runs.train_whole(tmp_path_factory.mktemp("whole"), lambda: trained.llama(4), [1, 6])
    return runs.known(folder), runs.known(begun)


@pytest.mark.parametrize("given", ["base", "previous"])
def test_beside_what_it_was_before_two_tensors_exchanged_are_seen_wherever_they_lie(given: str, whole: tuple[Known, Known]) -> None:
    """Queries and keys, gates, norms and embeddings have no gauge of their own."""
    known, begun = whole
    started = {"base": begun.adapter.tensors} if given == "base" else {"previous": begun.adapter}
    at = {str(key).removeprefix("model.").removesuffix(".weight"): position for position, key in enumerate(known.keys)}
    assert not ask(known.raw, known, **started).apart
    for one, two in (
        ("layers.1.self_attn.q_proj", "layers.1.self_attn.k_proj"),
        ("layers.0.mlp.gate_proj", "layers.3.mlp.gate_proj"),
        ("layers.2.input_layernorm", "layers.2.post_attention_layernorm"),
        ("embed_tokens", "lm_head"),
    ):
        moved = {at[one], at[two]}
        found = ask(exchanged(known.raw, *moved), known, **started)
        assert moved <= set(found.apart), one
        assert not moved & found.proven


@pytest.mark.parametrize(("together", "count"), [(1 << 23, 16), (100, 10), (1, 8)])
def test_of_many_siblings_fewer_numbers_each_are_held(together: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten vectors of 16 numbers."""
    (run,) = method_nets.networks("IA3", 1, layers=10, steps=2, seed=1)
    at = [position for position, key in enumerate(run.keys) if "v_proj.ia3_l" in str(key)]
    seen = []
    directions = displaced._directions

    def counted(source, key, position, start, most):
        pair = directions(source, key, position, start, most)
        seen.append(None if pair is None else len(pair[0]))
        return pair

    monkeypatch.setattr(displaced, "TOGETHER", together)
    monkeypatch.setattr(displaced, "_directions", counted)
    displaced.misplaced_values(Source(run.raw, run.adapter), run.keys, at, methods.starts_of(run.adapter))
    assert seen == [count] * 10


def test_more_siblings_than_can_be_compared_with_each_other_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = method_nets.networks("IA3", 1, layers=6, steps=2, seed=1)
    one, two = (at for at, key in enumerate(run.keys) if "ia3_l" in str(key) and any(f"layers.{layer}.self_attn" in str(key) for layer in (1, 4)))
    raw = exchanged(run.raw, one, two)
    assert found_in(raw, run, run.keys) == {one, two}
    monkeypatch.setattr(displaced, "MOST", 5)
    assert found_in(raw, run, run.keys) == frozenset()


def test_factors_hundreds_of_steps_after_an_earlier_checkpoint_do_not_stand_apart():
    """At the end of a schedule the last direction is not that of the whole way: five of 88 healthy factors seemed exchanged."""
    run = real.CASES / "long" / "long_opt"
    done = repair(str(run / "checkpoint-300"), adapter=str(run / "checkpoint-300"), previous=str(run / "checkpoint-60"))
    assert done.ordering.verdict == "verified"
    assert len(done.named.parameters) == 88
