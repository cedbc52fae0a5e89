"""Names that are in the file, beside it, or given: believed only as far as they fit."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from ostate.commands.repair import repair
from ostate.core.naming import Question
from ostate.core.state import RawState
from ostate.errors import OrderingError
from ostate.evidence.ask import verify
from ostate.ordering import claims
from ostate.read import read
from ostate.read.adapters import read_adapter
from ostate.store import load
from tests import real
from tests.records import replace
from tests.trained import llama, sequences

SOURCES = ["recorded", "given"]


def _question(name: str, **options: object) -> Question:
    case = real.case(name)
    return Question(raw=read(str(case.state)), adapter=read_adapter(str(case.adapter)), **options)  # type: ignore[arg-type]


def _truth(name: str) -> list[str]:
    return [row["name"] for row in real.case(name).truth]


def _renamed(raw: RawState, names: list[str]) -> RawState:
    entries = tuple(replace(entry, name=name) for entry, name in zip(raw.entries, names))
    return replace(raw, entries=entries, recorded="param_names")


def test_param_names_are_a_claim_with_keys():
    found, lost = claims(_question("named_trainable"), SOURCES)
    (claim,) = found
    assert (claim.source, claim.rule, list(claim.names)) == ("recorded", "param_names", _truth("named_trainable"))
    assert all(claim.keys)
    assert lost == []


def test_names_without_the_adapters_name_get_it_back():
    question = _question("llama_qv")
    truth = _truth("llama_qv")
    raw = _renamed(question.raw, [name.replace(".default.", ".") for name in truth])
    found, _ = claims(replace(question, raw=raw), SOURCES)
    assert list(found[0].names) == truth


def test_wrapped_names_lose_their_wrappers():
    question = _question("llama_qv")
    truth = _truth("llama_qv")
    raw = _renamed(question.raw, [f"module._orig_mod.{name}" for name in truth])
    found, _ = claims(replace(question, raw=raw), SOURCES)
    assert list(found[0].names) == truth


@pytest.mark.parametrize("lead", ["model.", "net.encoder."])
def test_modules_around_the_saved_model_stay_in_the_names_and_hide_nothing_from_the_numbers(lead: str):
    question = _question("named_trainable")
    truth = _truth("named_trainable")
    (claim,), lost = claims(replace(question, raw=_renamed(question.raw, [lead + name for name in truth])), SOURCES)
    assert list(claim.names) == [lead + name for name in truth]
    assert claim.keys == claims(question, SOURCES)[0][0].keys
    assert lost == []
    swapped = [truth[2], truth[1], truth[0], *truth[3:]]
    raw = _renamed(question.raw, [lead + name for name in swapped])
    keys = claims(replace(question, raw=raw), SOURCES)[0][0].keys
    assert verify(keys, raw, question.adapter).verdict == "contradicted"


@pytest.mark.parametrize("inner", ["base_model.model.", "base_model.model.model.", "base_model.model.model.layers."])
def test_names_within_an_inner_module_are_compared_and_still_fill_the_whole_model(inner: str, tmp_path: Path):
    from ostate.probe import filled, lora_adamw

    torch.manual_seed(0)
    model = get_peft_model(llama(layers=6), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    outer = {name: p for name, p in model.named_parameters() if p.requires_grad}
    names = {name.removeprefix(inner): p for name, p in outer.items()}
    optimizer = torch.optim.AdamW(list(names.items()), lr=2e-3)
    for row in sequences(20, 0):
        model(**{name: value[None] for name, value in row.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    done = repair(str(tmp_path), str(tmp_path / "named.safetensors"))
    assert done.ordering.proven
    assert list(done.ordering.names) == list(names)
    again = lora_adamw(model, load(str(tmp_path / "named.safetensors")))
    assert filled(again).coverage == 1.0
    assert all(torch.equal(again.state[p]["exp_avg_sq"], optimizer.state[p]["exp_avg_sq"]) for p in outer.values())


def test_a_lead_that_only_some_names_have_is_none():
    question = _question("named_trainable")
    truth = _truth("named_trainable")
    names = [f"{'left' if at % 2 else 'right'}.{name}" for at, name in enumerate(truth)]
    (claim,), lost = claims(replace(question, raw=_renamed(question.raw, names)), SOURCES)
    assert set(claim.keys) == {None}
    assert lost


def test_names_of_another_model_stand_without_keys_and_it_is_said():
    question = _question("llama_qv")
    raw = _renamed(question.raw, [f"other.{at}" for at in range(12)])
    found, lost = claims(replace(question, raw=raw), SOURCES)
    assert set(found[0].keys) == {None}
    assert "none of these names is in the adapter file" in lost[0]["reason"]


def test_a_recorded_name_of_another_shape_is_refuted():
    question = _question("llama_qv")
    truth = _truth("llama_qv")
    swapped = [truth[1], truth[0], *truth[2:]]  # lora_A and lora_B
    found, lost = claims(replace(question, raw=_renamed(question.raw, swapped)), SOURCES)
    assert found == []
    assert "position 0 has shape [4, 32]" in lost[0]["reason"]


def test_a_name_that_stands_twice_is_an_error_and_nothing_is_inferred_in_its_place():
    question = _question("llama_qv")
    truth = _truth("llama_qv")
    with pytest.raises(OrderingError, match="gives positions 0 and 2 the one name"):
        claims(replace(question, raw=_renamed(question.raw, [truth[0], truth[1], truth[0], *truth[3:]])), SOURCES)


def _forms(names: list[str], folder: Path) -> dict[str, Path]:
    (folder / "lines.txt").write_text("# the optimizer's order\n" + "\n".join(names) + "\n")
    (folder / "flat.json").write_text(json.dumps(names))
    (folder / "groups.json").write_text(json.dumps([names, []]))
    (folder / "object.json").write_text(json.dumps({"schema_version": 1, "param_name_groups": [names, []]}))
    with (folder / "table.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["position", "name", "shape"])
        writer.writerows(reversed([[at, name, "4 x 32"] for at, name in enumerate(names)]))
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize("form", ["lines", "flat", "groups", "object", "table"])
def test_an_order_is_read_in_every_form(form: str, tmp_path: Path):
    truth = _truth("llama_qv")
    path = _forms(truth, tmp_path)[form]
    found, _ = claims(_question("llama_qv", order=str(path)), SOURCES)
    assert [(claim.source, list(claim.names)) for claim in found] == [("given", truth)]


def test_an_order_may_be_given_in_adapter_keys(tmp_path: Path):
    truth = _truth("llama_qv")
    (tmp_path / "order").write_text("\n".join(name.replace(".default.", ".") for name in truth))
    found, _ = claims(_question("llama_qv", order=str(tmp_path / "order")), SOURCES)
    assert list(found[0].names) == truth


def test_names_of_the_positions_with_state_are_enough(tmp_path: Path):
    case = real.case("all_params_sparse")
    stateful = [row["name"] for row in case.truth if row["has_state"]]
    (tmp_path / "order").write_text("\n".join(stateful))
    found, _ = claims(_question("all_params_sparse", order=str(tmp_path / "order")), SOURCES)
    named = {position: name for position, name in enumerate(found[0].names) if name is not None}
    assert named == {row["index"]: row["name"] for row in case.truth if row["has_state"]}


def test_a_list_that_is_too_short_is_refused_with_both_numbers(tmp_path: Path):
    (tmp_path / "order").write_text("a\nb\n")
    with pytest.raises(OrderingError) as error:
        claims(_question("llama_qv", order=str(tmp_path / "order")), SOURCES)
    assert "it lists 2 names, the file has 12 positions, 12 with state" in str(error.value)
