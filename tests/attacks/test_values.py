"""Values of another kind than any program writes, anywhere in a state, an index or a rank's file: read, or refused in words."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import time

import pytest
import torch

import ostate
from ostate import plot
from ostate import read as formats
from ostate.core.foreign import expanded
from ostate.core.tensors import Part, TensorRef
from ostate.errors import OstateError, ReadError
from ostate.read.layouts.fsdp_shards import _outside
from ostate.read.layouts.hf_storage import _whole
from ostate.read.parts import stages
from ostate.read.pickle.records import Refusal, check_key
from tests.real import CASES

CHECKPOINT = CASES / "one-process" / "llama_qv" / "checkpoint-5"
ZERO2 = CASES / "distributed" / "ds_z2"
UNIVERSAL, DCP = CASES / "distributed" / "ds_z2_universal", CASES / "distributed" / "fsdp2_dcp"


def nested(count, depth, leaf=1, kind=list):
    """A value that stands `count` times in the one around it, and so on: `count ** depth` values in a few kilobytes."""
    for _ in range(depth):
        leaf = dict.fromkeys(range(count), leaf) if kind is dict else kind([leaf] * count)
    return leaf


def itself():
    value = []
    value.append(value)
    return value


ENDLESS = {
    "lists": lambda: nested(4000, 3),
    "two by two": lambda: nested(2, 60),
    "tuples": lambda: nested(4000, 3, kind=tuple),
    "mappings": lambda: nested(2000, 3, kind=dict),
    "texts": lambda: nested(2000, 2, "x" * 1000),
    "tensors": lambda: nested(60, 3, torch.zeros(1)),
    "itself": itself,
    "deep": lambda: nested(1, 300),
}


def changed(tmp_path, change):
    """A copy of a real checkpoint whose state `change` was given."""
    shutil.copytree(CHECKPOINT, tmp_path / "checkpoint-5")
    state = torch.load(tmp_path / "checkpoint-5" / "optimizer.pt", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "checkpoint-5" / "optimizer.pt")
    return str(tmp_path / "checkpoint-5")


def look(path):
    """Inspect and repair: return how each ended. Anything but a refusal with a place and a way out fails the test."""
    ends = []
    for call in (lambda: ostate.inspect(path, values=True), lambda: ostate.repair(path, None)):
        began = time.process_time()
        try:
            call()
            ends.append("read")
        except OstateError as error:
            ends.append("refused" if error.fix and error.where else "refused without a way out")
        assert time.process_time() - began < 5
    return ends


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("place", ["group", "betas", "entry", "moment", "step"])
def test_values_that_stand_within_one_another_without_end_are_left_out_or_refused(tmp_path, kind, place):
    def change(state):
        value = ENDLESS[kind]()
        rows = state["param_groups"] if place in ("group", "betas") else state["state"].values()
        for row in rows:
            row[{"group": "extra", "betas": "betas", "entry": "extra", "moment": "exp_avg", "step": "step"}[place]] = value

    ends = look(changed(tmp_path, change))
    assert set(ends) <= ({"read"} if place in ("group", "betas") else {"refused"})


def test_a_key_that_holds_itself_many_times_is_refused():
    """Hashing it would never end."""
    with pytest.raises(Refusal, match="512 values"):
        check_key(nested(60, 6, kind=tuple))
    assert check_key(("a", (1, 2))) == 5


@pytest.mark.parametrize("key", [None, 7, 1.5, float("nan"), (1, 2), b"x", True], ids=repr)
def test_keys_that_are_no_text_are_refused_in_an_entry_and_left_out_of_a_group(tmp_path, key):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    in_entry = changed(tmp_path / "a", lambda state: state["state"][1].update({key: torch.zeros(4)}))
    assert look(in_entry) == ["refused", "refused"]
    in_group = changed(tmp_path / "b", lambda state: state["param_groups"][0].update({key: 1}))
    assert look(in_group) == ["read", "read"]
    ostate.repair(in_group, str(tmp_path / "out.safetensors"))
    ostate.diff(str(CHECKPOINT), in_group)
    assert any("not a hyperparameter" in finding.text for finding in ostate.inspect(in_group).findings)


@pytest.mark.parametrize("value", [[1e-30, 1e-3], (1, 2), [None, 1e-3], 0, None], ids=repr)
def test_an_eps_of_several_numbers_does_not_disturb_the_evidence(tmp_path, value):
    verdicts = []
    for place, eps in (("as it is", 1e-8), ("changed", value)):
        (tmp_path / place).mkdir()
        folder = changed(tmp_path / place, lambda state, eps=eps: [group.update(eps=eps) for group in state["param_groups"]])
        verdicts.append(ostate.repair(folder, None).ordering.verdict)
    assert verdicts[0] == verdicts[1]


@pytest.mark.parametrize("betas", [[0.9, None], (0.9, 0.99, 0.999), None], ids=repr)
def test_betas_that_are_not_two_rates_end_in_a_verdict(tmp_path, betas):
    folder = changed(tmp_path, lambda state: [group.update(betas=betas) for group in state["param_groups"]])
    assert ostate.repair(folder, None).ordering.verdict in ("verified", "recovered", "partial", "unverified")


JUNK = (None, True, -1, 7, 10**30, 1.5, "x", b"x", [], [1], [None], ["x"], {}, {"a": 1}, {0: [1]}, (), (10**12, 10**12))


def ended(path):
    """Read the state: return how that ended."""
    try:
        formats.read(path)
    except ReadError as error:
        return "refused" if error.fix else "refused without a way out"
    return "read"


def rank_file(folder, name, change, value):
    """Save a rank's file of `folder` again with `change(stored, value)` made in it."""
    path = next(folder.rglob(name))
    stored = torch.load(path, weights_only=False)
    change(stored, value)
    torch.save(stored, path)


def inner(stored):
    return stored["optimizer_state_dict"]


def first(mapping):
    return next(iter(mapping.values()))


CHANGES = {
    # what is put into which file of ZeRO 2: (file, function of the stored value and the junk)
    "param_shapes": ("mp_rank_00_model_states.pt", lambda stored, value: stored.update(param_shapes=value)),
    "a group's shapes": ("mp_rank_00_model_states.pt", lambda stored, value: stored.update(param_shapes=[value])),
    "a shape": ("mp_rank_00_model_states.pt", lambda stored, value: stored["param_shapes"][0].update({next(iter(stored["param_shapes"][0])): value})),
    "module": ("mp_rank_00_model_states.pt", lambda stored, value: stored.update(module=value)),
    "ds_config": ("mp_rank_00_model_states.pt", lambda stored, value: stored.update(ds_config=value)),
    "the state": ("zero_pp_rank_0*optim_states.pt", lambda stored, value: stored.update(optimizer_state_dict=value)),
    "the inner state": ("zero_pp_rank_0*optim_states.pt", lambda stored, value: inner(stored).update(base_optimizer_state=value)),
    "groups": ("zero_pp_rank_0*optim_states.pt", lambda stored, value: inner(stored)["base_optimizer_state"].update(param_groups=value)),
    "a group": ("zero_pp_rank_0*optim_states.pt", lambda stored, value: inner(stored)["base_optimizer_state"].update(param_groups=[value])),
    "entries": ("zero_pp_rank_0*optim_states.pt", lambda stored, value: inner(stored)["base_optimizer_state"].update(state=value)),
    "an entry": ("zero_pp_rank_0*optim_states.pt", lambda stored, value: inner(stored)["base_optimizer_state"].update(state={0: value})),
    "a step": ("zero_pp_rank_0*optim_states.pt", lambda stored, value: first(inner(stored)["base_optimizer_state"]["state"]).update(step=value)),
    "a slot": ("zero_pp_rank_0*optim_states.pt", lambda stored, value: first(inner(stored)["base_optimizer_state"]["state"]).update({7: value})),
    "paddings": ("zero_pp_rank_0*optim_states.pt", lambda stored, value: inner(stored).update(param_alignment_paddings=[value])),
    "the tail": ("zero_pp_rank_0*optim_states.pt", lambda stored, value: inner(stored).update(group_paddings=value)),
    "the world": ("zero_pp_rank_0*optim_states.pt", lambda stored, value: inner(stored).update(partition_count=value)),
    "the stage": ("zero_pp_rank_0*optim_states.pt", lambda stored, value: inner(stored).update(zero_stage=value)),
    "the release": ("zero_pp_rank_0*optim_states.pt", lambda stored, value: inner(stored).update(ds_version=value)),
    "weights": ("zero_pp_rank_0*optim_states.pt", lambda stored, value: inner(stored).update(single_partition_of_fp32_groups=value)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_rank_of_zero_with_a_value_of_any_kind_is_read_or_refused(tmp_path, what):
    name, change = CHANGES[what]
    refused = 0
    for number, value in enumerate(JUNK):
        folder = tmp_path / str(number)
        shutil.copytree(ZERO2, folder)
        rank_file(folder, name, change, value)
        end = ended(str(folder))
        assert end in ("read", "refused"), repr(value)
        refused += end == "refused"
    assert refused or what in ("module", "ds_config", "weights")


def test_a_parameter_of_a_universal_checkpoint_whose_name_leads_elsewhere_is_not_looked_for_there(tmp_path):
    shutil.copytree(UNIVERSAL, tmp_path / "run")
    model = next((tmp_path / "run").rglob("mp_rank_00_model_states.pt"))
    zero = model.parent / "zero"
    name = next(path.name for path in sorted(zero.iterdir()) if "lora_A" in path.name)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(zero / name, tmp_path / "elsewhere" / "x")
    stored = torch.load(model, weights_only=False)
    stored["param_shapes"] = [
        {("../../../elsewhere/x" if key == name else key): shape for key, shape in group.items()} for group in stored["param_shapes"]
    ]
    torch.save(stored, model)
    with pytest.raises(ReadError, match="the folder of a parameter is missing"):
        formats.read(str(tmp_path / "run"))


@pytest.mark.parametrize("value", JUNK, ids=lambda value: repr(value)[:30])
@pytest.mark.parametrize("field", ["param_groups", "a group", "step"])
def test_hyperparameters_of_a_universal_checkpoint_of_any_kind_are_read_or_refused(tmp_path, field, value):
    shutil.copytree(UNIVERSAL, tmp_path / "run")
    path = next((tmp_path / "run").rglob("optimizer_state.pt"))
    stored = torch.load(path, weights_only=False)
    rows = stored.get("optimizer_state_dict", stored)
    if field == "step":
        step = next((tmp_path / "run").rglob("*lora_A*/step.pt"))
        torch.save(value, step)
    else:
        rows["param_groups"] = value if field == "param_groups" else [value]
        torch.save(stored, path)
    assert ended(str(tmp_path / "run")) in ("read", "refused")


def test_an_index_with_values_of_any_kind_is_read_or_refused(tmp_path):
    """Every field of the metadata of one tensor, and of its chunk's place."""
    shutil.copytree(DCP, tmp_path / "dcp")
    raw = (DCP / ".metadata").read_bytes()
    key = next(key for key in pickle.loads(raw).state_dict_metadata if key.endswith("exp_avg"))

    def fields(metadata):
        about = metadata.state_dict_metadata[key]
        index, place = next((index, place) for index, place in metadata.storage_data.items() if index.fqn == key)
        return [
            *((about, name) for name in ("properties", "size", "chunks")),
            *((about.chunks[0], name) for name in ("offsets", "sizes")),
            *((place, name) for name in ("relative_path", "offset", "length", "transform_descriptors")),
            *((metadata, name) for name in ("state_dict_metadata", "planner_data", "storage_data")),
            (index, "offset"),
        ]

    for at in range(len(fields(pickle.loads(raw)))):
        for value in JUNK[:: 2 if at % 2 else 3]:
            metadata = pickle.loads(raw)
            owner, name = fields(metadata)[at]
            object.__setattr__(owner, name, value)
            (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(metadata))
            assert ended(str(tmp_path / "dcp")) in ("read", "refused"), f"{name} {value!r}"
    for path in ((), ([1],), ({},), (None,)):
        metadata = pickle.loads(raw)
        metadata.planner_data[key] = path
        (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(metadata))
        formats.read(str(tmp_path / "dcp"))


def test_pieces_that_lie_over_one_another_do_not_make_up_a_whole():
    """Their numbers of elements alone would: two of two elements for four, with a hole in the middle and one element twice."""
    one = Part("x", 0, (2,), (1,), (0,))
    for starts, wrong in (((0,), (2,)), False), (((0,), (1,)), True), (((-1,), (2,)), True), (((0,), (3,)), True):
        parts = [one._replace(starts=start) for start in starts]
        assert _outside(parts, (4,), "x") is wrong
    ref = TensorRef("F32", (2, 2), (Part("x", 0, (2, 2), (2, 1), (0, 0)),))
    assert _whole("x", "k", [((0, 0), ref), ((0, 2), ref)]).shape == (2, 4)
    with pytest.raises(ReadError, match="the pieces of k"):
        _whole("x", "k", [((0, 0), ref), ((0, 1), ref), ((0, 2), ref._replace(shape=(2, 0), parts=()))])
    with pytest.raises(ReadError, match="the pieces of k"):
        _whole("x", "k", [((0, -2), ref), ((0, 0), ref)])


def test_stages_are_numbered_by_numbers():
    assert stages(["optim.optimizer_parts.stage_0", "optim.optimizer_parts.stage_" + "9" * 5000], "x") == []
    assert stages(["optim.optimizer_parts.stage_1", "optim.optimizer_parts.stage_0"], "x")[0].endswith("0")


def test_values_are_counted_wherever_they_stand():
    assert expanded([1, [2, 3], {"a": (4,)}], 100) == 7
    assert expanded("x" * 640, 100) == 10
    assert expanded(nested(1, 70), 100) == 101
    assert expanded(nested(10, 3), 2000) == 1110
    assert expanded(nested(10, 9), 2000) > 2000


FIELDS = (
    ("optimizer", "family"), ("optimizer", "class"), ("findings", 0), ("findings", 0, "severity"), ("findings", 0, "rule"), ("findings", 0, "names"),
    ("ordering", "verdict"), ("ordering", "rejected"), ("ordering", "left_out"), ("ordering", "assumed"), ("ordering", "source"),
    ("ordering", "proof"), ("groups", 0, "names"),
    ("parameters", 0, "shape"), ("parameters", 0, "adapter_key"), ("parameters", 0, "decoded_from"), ("parameters", 0, "dtype"),
    ("parameters", 0, "scalars"), ("adapter",), ("adapter", "name"), ("adapter", "r"), ("adapter", "base_model"), ("source",), ("source", "layout"),
    ("source", "files"), ("source", "positions"), ("migration",), ("ordering", "margin"), ("ordering",), ("groups",), ("optimizer",),
)  # fmt: skip


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    path = tmp_path_factory.mktemp("named") / "named.safetensors"
    ostate.repair(str(CHECKPOINT), str(path))
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: " ".join(map(str, field)))
def test_a_manifest_with_a_value_of_any_kind_is_loaded_and_drawn_or_refused(tmp_path, named, field):
    head, data = named
    path = tmp_path / "named.safetensors"
    refused = 0
    for value in (None, True, -1, 7, 1.5, "x", [], [1], ["x"], [[32]], {}, {"a": 1}, [4, 4, 4, 4]):
        manifest = json.loads(head["__metadata__"]["ostate"])
        owner = manifest
        for key in field[:-1]:
            owner = list(owner.values())[key] if key == 0 and isinstance(owner, dict) else owner[key]
        owner[field[-1]] = value
        text = json.dumps({**head, "__metadata__": {**head["__metadata__"], "ostate": json.dumps(manifest)}}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        try:
            ostate.load(str(path))
        except OstateError as error:
            refused += bool(error.fix)
            continue
        assert "<html" in plot.page([str(path)])
        with contextlib.suppress(OstateError):  # a layout may refuse what it cannot hold, in words
            ostate.export(str(path), "torch", str(tmp_path / "optimizer.pt"), force=True)
    assert refused


@pytest.mark.parametrize("value", [1e400, 10**400, -(10**400)], ids=["infinite", "of 400 digits", "less"])
@pytest.mark.parametrize("field", ["step", "lr", "eps", "margin"])
def test_a_manifest_with_a_number_beyond_all_real_ones_is_validated_and_loaded_or_refused(tmp_path, named, field, value):
    """JSON holds numbers that no float does, and Infinity, which Python writes for 1e400."""
    head, data = named
    path = tmp_path / "named.safetensors"
    manifest = json.loads(head["__metadata__"]["ostate"])
    first = next(iter(manifest["parameters"].values()))
    {"step": first, "margin": manifest["ordering"]}.get(field, manifest["groups"][0])[field] = value
    text = json.dumps({**head, "__metadata__": {**head["__metadata__"], "ostate": json.dumps(manifest)}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    rules = {finding.rule for finding in ostate.validate(str(path), deep=True)}
    assert "header-digest" in rules
    assert field == "margin" or rules & {"step", "range", "schema"}
    with contextlib.suppress(OstateError):
        ostate.load(str(path))
