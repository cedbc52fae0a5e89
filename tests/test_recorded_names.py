"""Recorded names that the adapter does not know: said aloud, and never called proven."""

from __future__ import annotations

import json
import shutil

import pytest

import ostate
from tests.real import CASES

CHECKPOINT = CASES / "long" / "long_opt" / "checkpoint-300"
RULE = "names-not-in-adapter"


@pytest.fixture(scope="module")
def true_names():
    return ostate.repair(str(CHECKPOINT)).ordering.names


def recorded(folder, names):
    shutil.copytree(CHECKPOINT, folder)
    (folder / "optimizer_param_names.json").write_text(json.dumps([names, []]))
    return str(folder)


def findings(found):
    return [finding for finding in found if finding.rule == RULE]


def test_a_name_that_is_no_tensor_of_the_adapter_is_named_by_inspect_and_repair(tmp_path, true_names):
    names = ["net.other.weight" if position == 5 else name for position, name in enumerate(true_names)]
    folder = recorded(tmp_path / "run", names)
    (seen,) = findings(ostate.inspect(folder, adapter=folder).findings)
    done = ostate.repair(folder)
    (said,) = findings(done.findings)
    assert seen.names == said.names == ("net.other.weight",)
    assert seen.severity == said.severity == "warning"
    assert done.ordering.verdict == "partial"
    assert "net.other.weight" in done.ordering.undecided  # with those that do not stand by themselves: names in a file may be exchanged by hand


def test_names_of_another_model_are_an_assumption_and_all_are_named(tmp_path, true_names):
    folder = recorded(tmp_path / "run", [f"net.block{position}.weight" for position in range(len(true_names))])
    done = ostate.repair(folder)
    (said,) = findings(done.findings)
    assert done.ordering.verdict == "unverified"
    assert len(said.names) == len(true_names)


def test_names_that_the_adapter_knows_raise_no_finding(tmp_path, true_names):
    folder = recorded(tmp_path / "run", [name.removeprefix("base_model.model.") for name in true_names])
    assert findings(ostate.inspect(folder, adapter=folder).findings) == []
    done = ostate.repair(folder)
    assert findings(done.findings) == []
    assert done.ordering.verdict == "verified"


@pytest.mark.parametrize(("kinds", "factor"), [(("q_proj", "v_proj"), "lora_A"), (("k_proj", "out_proj"), "lora_B")])
def test_one_factor_of_two_kinds_exchanged_in_every_layer_is_no_order_of_any_program_and_not_verified(tmp_path, kinds, factor):
    """The other factor stays in place, so that each module still fits half; no sibling is left to stand apart from."""
    names = ostate.verify(str(CHECKPOINT), adapter=str(CHECKPOINT)).names
    exchanged = dict([kinds, kinds[::-1]])
    false = [next((name.replace(one, two) for one, two in exchanged.items() if one in name and factor in name), name) for name in names]
    assert sum(a != b for a, b in zip(names, false)) > 20
    (tmp_path / "order.txt").write_text("\n".join(false))
    with pytest.raises(ostate.OstateError, match="contradict"):
        ostate.verify(str(CHECKPOINT), adapter=str(CHECKPOINT), order=str(tmp_path / "order.txt"))


def test_what_repair_names_by_search_verify_of_its_file_finds_again(tmp_path):
    """Rank 4, three layers: too few bits for the family, and each position by itself is given by the numbers alone."""
    run = tmp_path / "run"
    shutil.copytree(CASES / "one-process" / "llama_qv" / "checkpoint-5", run)
    done = ostate.repair(str(run), str(tmp_path / "out.safetensors"))
    found = ostate.verify(str(tmp_path / "out.safetensors"), adapter=str(run))
    assert (done.ordering.verdict, found.verdict) == ("recovered", "recovered")
    assert done.ordering.undecided == found.undecided == ()


@pytest.mark.parametrize("case", ["llama_qv", "optim_adamw_bnb_8bit", "never_stepped", "bias_all"])
def test_what_repair_did_not_search_for_verify_of_its_file_does_not_call_recovered(case, tmp_path):
    """Names of a rebuilt model that the family leaves open: the search's fitted tails prove none of them."""
    (checkpoint,) = (CASES / "one-process" / case).glob("checkpoint-*")
    base = CASES / "one-process" / f"{case}.base"
    done = ostate.repair(str(checkpoint), str(tmp_path / "out.safetensors"), base=str(base))
    found = ostate.verify(str(tmp_path / "out.safetensors"), adapter=str(checkpoint))
    assert done.ordering.verdict in ("partial", "unverified")
    assert (found.verdict, set(found.undecided)) == (done.ordering.verdict, set(done.ordering.undecided))
