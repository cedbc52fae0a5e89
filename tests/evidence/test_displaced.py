"""The moments of one tensor of two layers exchanged under names that kept their places: both names stand apart, and nobody's do in a healthy run."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ostate.core.naming import Claim, Evidence, Question
from ostate.core.state import RawState
from ostate.evidence import displaced, methods
from ostate.evidence.comparison import Comparison
from ostate.evidence.look import Source
from ostate.ordering.family import family_of
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


def ask(raw: RawState, known: Known) -> Evidence:
    claim = Claim(source="recorded", rule="recorded", names=known.keys, keys=known.keys)
    return Comparison(raw, known.adapter).test(claim, family_of(claim, (), Question(raw=raw, adapter=known.adapter)))


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
