"""Every position of every real checkpoint that one file holds: bytes, steps and hyperparameters as the live optimizer had them."""

from __future__ import annotations

import math

import pytest

from ostate import read as formats
from ostate.errors import ReadError
from tests import real

ONE_FILE = [
    *(name for kind in ("one-process", "long") for name in real.names(kind)),
    "acc_fsdp2_full",
    "ddp_plain",
    "lit_single",
    "trainer_ddp",
    "tune_single",
]
HYPER = ("lr", "initial_lr", "betas", "eps", "weight_decay", "amsgrad")


def close(stored, true) -> bool:
    if isinstance(true, (list, tuple)):
        return len(stored) == len(true) and all(map(close, stored, true))
    return math.isclose(stored, true, rel_tol=1e-12, abs_tol=0)


@pytest.mark.parametrize("name", [name for name in ONE_FILE if name != "neg_truncated"])
def test_every_number_is_the_live_optimizers(name):
    case = real.case(name)
    raw = formats.read(str(case.state))
    by_position = all("index" in row for row in case.truth)
    truth = {row["index"]: row for row in case.truth} if by_position else {row["exp_avg_sq_sha256"]: row for row in case.truth}
    assert [entry.position for entry in raw.entries] == list(range(len(raw.entries)))
    assert sum(entry.has_state for entry in raw.entries) == len(case.with_state)
    seen = 0
    for entry in raw.entries:
        if not entry.has_state:
            assert not by_position or not truth.get(entry.position, {}).get("exp_avg_sq_sha256")
            continue
        digest = real.sha256(entry.slots["exp_avg_sq"].read())
        row = truth[entry.position if by_position else digest]
        assert digest == row["exp_avg_sq_sha256"]
        if "exp_avg_sha256" in row:
            assert real.sha256(entry.slots["exp_avg"].read()) == row["exp_avg_sha256"]
        assert list(entry.shape or ()) == row["shape"]
        assert entry.step == row["step"]
        assert not by_position or entry.group == row.get("group", entry.group)
        assert entry.name in {None, row["name"]}
        for key in HYPER:
            if row.get(key) is not None:
                assert close(raw.groups[entry.group].hyper[key], row[key]), key
        seen += 1
    assert seen == len(case.with_state) > 0
    assert not raw.findings


@pytest.mark.parametrize(
    ("name", "layout", "optimizer", "recorded", "sizes"),
    [
        ("llama_qv", "torch", "adamw", None, [12, 0]),
        ("loraplus_plain_12", "torch", "adamw", None, [36, 0, 36, 0]),
        ("all_params_sparse", "torch", "adamw", None, [42]),
        ("named_trainable", "torch", "adamw", "param_names", [12]),
        ("namekeyed_less", "torch", "adamw", "name-keyed", [12]),
        ("acc_fsdp2_full", "torch", "adamw", "name-keyed", [9, 9]),
        ("lit_single", "lightning", "adamw", None, [9, 9]),
        ("tune_single", "torch", "adamw", None, [42]),
    ],
)
def test_what_is_recorded_and_how_the_groups_lie(name, layout, optimizer, recorded, sizes):
    raw = formats.read(str(real.case(name).state))
    assert (raw.layout, raw.optimizer, raw.recorded) == (layout, optimizer, recorded)
    assert [len(group.positions) for group in raw.groups] == sizes
    assert [entry.name is not None for entry in raw.entries] == [recorded is not None] * len(raw.entries)


def test_the_facts_of_a_trainer_checkpoint():
    case = real.case("llama_qv")
    facts = formats.read(str(case.state)).facts
    assert facts["global_step"] == 5
    assert facts["peft_version"] == case.meta["versions"]["peft"]
    assert facts["folder"] == str(case.state.parent)


@pytest.mark.parametrize(("name", "count", "step"), [("lit_single", 48, 5), ("bundled", 42, 5), ("ddp_plain", 0, 5), ("llama_qv", 0, 5)])
def test_weights_and_steps_that_lie_in_the_same_file(name, count, step):
    raw = formats.read(str(real.case(name).state))
    assert len(raw.weights) == count
    assert raw.facts["global_step"] == step


def test_folders_give_what_their_only_state_gives():
    for name in ("llama_qv", "bundled", "accelerate_save_state", "two_adapters"):
        case = real.case(name)
        from_folder, from_file = formats.read(str(case.state.parent)), formats.read(str(case.state))
        assert from_folder.entries == from_file.entries
        assert from_folder.source == str(case.state.parent)


def test_a_truncated_checkpoint_is_refused_with_what_where_and_fix():
    with pytest.raises(ReadError) as caught:
        formats.read(str(real.case("neg_truncated").state))
    assert str(real.case("neg_truncated").state) in str(caught.value)
    assert "copy it again" in caught.value.fix
