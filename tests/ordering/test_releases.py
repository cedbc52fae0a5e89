"""Older releases of peft and transformers, from the files that they wrote (`releases/make.py`), with and without their model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ostate.core.naming import Claim, Question
from ostate.core.state import RawState
from ostate.ordering import claims
from ostate.read import read
from ostate.read.adapters import read_adapter

RELEASES = Path(__file__).parent / "releases"
CASES = sorted(folder.name for folder in RELEASES.iterdir() if (folder / "truth.json").is_file())


def _ask(folder: Path) -> tuple[list[str], RawState, list[Claim]]:
    truth = [name for group in json.loads((folder / "truth.json").read_text()) for name in group]
    raw = read(str(folder / "optimizer.pt"))
    found, _ = claims(Question(raw=raw, adapter=read_adapter(str(folder)), base=str(folder / "base")))
    return truth, raw, found


def _wrong(claim: Claim, truth: list[str], raw: RawState) -> list[str]:
    return [truth[entry.position] for entry in raw.entries if entry.has_state and claim.names[entry.position] != truth[entry.position]]


def test_there_are_cases_of_each_release():
    assert {name.rpartition("_")[2] for name in CASES} == {"040", "062", "0132"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_every_claim_about_this_release_is_right(case: str):
    truth, raw, found = _ask(RELEASES / case)
    assert "skeleton" in {claim.source for claim in found}
    for claim in found:
        assert _wrong(claim, truth, raw) == [], claim.rule


@pytest.mark.parametrize("case", [case for case in CASES if "debias" not in case])
@pytest.mark.filterwarnings("ignore")
def test_every_claim_is_right_without_the_model_card_too(case: str, tmp_path: Path):
    copy = tmp_path / case
    shutil.copytree(RELEASES / case, copy)
    (copy / "README.md").unlink()
    truth, raw, found = _ask(copy)
    assert "skeleton" in {claim.source for claim in found}
    for claim in found:
        assert _wrong(claim, truth, raw) == [], claim.rule


@pytest.mark.parametrize(
    ("case", "era"),
    [("llama_norms_040", "4.26 to 4.33"), ("llama_norms_062", ">= 4.34"), ("llama_norms_0132", ">= 4.34"), ("t5_norms_0132", ">= 4.26")],
)
@pytest.mark.filterwarnings("ignore")
def test_the_groups_tell_the_era_as_far_as_they_can(case: str, era: str):
    _, _, found = _ask(RELEASES / case)
    (claim,) = [claim for claim in found if claim.source == "skeleton"]
    assert f"transformers {era}" in claim.rule


@pytest.mark.filterwarnings("ignore")
def test_peft_0_4_gives_original_modules_a_position_and_never_a_state():
    truth, raw, found = _ask(RELEASES / "llama_norms_040")
    (claim,) = [claim for claim in found if claim.source == "skeleton"]
    empty = [claim.names[entry.position] for entry in raw.entries if not entry.has_state]
    assert empty == [name for name in truth if ".original_module." in name]
    assert len(empty) == 6
    assert "PEFT <= 0.5" in claim.rule


@pytest.mark.filterwarnings("ignore")
def test_biases_that_were_trained_but_not_saved_are_named_without_a_key():
    truth, _, found = _ask(RELEASES / "opt_bias_lora_only_0132")
    (claim,) = [claim for claim in found if claim.source == "skeleton"]
    unsaved = [name for name, key in zip(claim.names, claim.keys) if key is None]
    assert unsaved == [name for name in truth if name.endswith(".base_layer.bias")]
    assert len(unsaved) == 4


def test_old_layers_have_no_base_layer_in_their_names():
    truth, _, _ = _ask(RELEASES / "opt_bias_all_062")
    assert not any(".base_layer." in name for name in truth)
