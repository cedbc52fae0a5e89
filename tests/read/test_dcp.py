"""torch.distributed.checkpoint folders, written by two real processes (FSDP2) or by the libraries of tests/cases."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch.distributed.checkpoint as torch_dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from ostate import read as formats
from ostate.errors import ReadError, UnknownFormat, UnsafePickle
from ostate.read.container import dcp_index
from ostate.read.container.dcp_index import DcpItem
from ostate.read.layouts import dcp
from ostate.read.weights import candidates

from .made import check, made, order_of, truth_of, two_group_order, watch_reads
from .make_model import Tiny, adamw, plain_truth, train, write_truth


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return made(tmp_path_factory, "make_dcp")


@pytest.fixture
def copy(folders, tmp_path):
    """A copy of `nested` to damage."""
    return Path(shutil.copytree(folders / "nested", tmp_path / "nested"))


NAMED = ["nested", "optimizer_only", "deep_root", "flattened", "threads", "resharded", "hybrid", "columns", "bfloat16", "accelerate"]


@pytest.mark.parametrize("case", NAMED)
def test_every_nesting_and_sharding_is_read_as_the_live_optimizer_had_it(folders, case):
    raw = formats.read(str(folders / case))
    assert raw.layout == "dcp"
    assert raw.recorded == "dcp"
    assert raw.optimizer == "adamw"
    check(raw, folders / case)


def test_the_groups_of_a_nested_dict_keep_their_order_and_a_flattened_one_is_grouped_again(folders):
    rows = truth_of(folders / "nested")
    for case in ("nested", "flattened"):
        raw = formats.read(str(folders / case))
        assert [len(group.positions) for group in raw.groups] == [6, 6]
        assert [entry.name for entry in raw.entries] == two_group_order(rows)


def test_integer_ids_stay_positions_without_names(folders):
    raw = formats.read(str(folders / "integer_ids"))
    assert raw.recorded is None
    assert all(entry.name is None and entry.key == entry.position for entry in raw.entries)
    check(raw, folders / "integer_ids", order=two_group_order(truth_of(folders / "integer_ids")))


def test_positions_of_frozen_parameters_are_kept_without_state(folders):
    raw = formats.read(str(folders / "sgd_frozen_ids"))
    order = order_of(folders / "sgd_frozen_ids")
    assert len(raw.entries) == len(order) == 21
    assert raw.optimizer == "sgd"
    check(raw, folders / "sgd_frozen_ids", order=order)


def test_a_state_saved_before_the_first_step_is_read_as_the_zeros_it_is(folders):
    raw = formats.read(str(folders / "never_stepped"))
    assert not raw.entries[0].slots["exp_avg_sq"].read().any()


def test_one_file_of_dcp_to_torch_save_holds_the_same(folders):
    check(formats.read(str(folders / "one_file")), folders / "one_file")


def test_weights_beside_the_optimizer_are_found_by_name_and_read_only_when_asked(folders, monkeypatch):
    nested = formats.read(str(folders / "nested"))
    beside = formats.read(str(folders / "accelerate" / "checkpoint-3"))
    assert beside.facts["folder"] == str(folders / "accelerate" / "checkpoint-3")
    asked = []
    real = dcp_index.load
    monkeypatch.setattr(dcp_index, "load", lambda *a, **k: asked.append(a) or real(*a, **k))
    name = nested.entries[0].name
    assert set(beside.weights) == set(nested.weights)
    assert not asked
    assert (beside.weights[name].read() == nested.weights[name].read()).all()
    assert asked


def test_no_tensor_is_read_until_it_is_asked_for(folders, monkeypatch):
    read = watch_reads(monkeypatch)
    raw = formats.read(str(folders / "columns"))
    at_first = sum(count for _, count in read)
    for entry in raw.entries:
        for slot in entry.slots.values():
            slot.read()
    asked = sum(count for _, count in read) - at_first
    assert asked == sum(4 * entry.numel * len(entry.slots) for entry in raw.entries)


def test_a_missing_file_is_named(copy):
    (copy / "__1_0.distcp").unlink()
    with pytest.raises(ReadError, match="missing") as error:
        formats.read(str(copy))
    assert error.value.where.endswith("__1_0.distcp")


def test_a_file_cut_short_is_named(copy):
    data = (copy / "__0_0.distcp").read_bytes()
    (copy / "__0_0.distcp").write_bytes(data[: len(data) // 2])
    with pytest.raises(ReadError, match="ends early") as error:
        formats.read(str(copy))
    assert error.value.where.endswith("__0_0.distcp")


def test_a_file_of_another_save_is_named(folders, copy):
    longer = (folders / "threads" / "__0_0.distcp").read_bytes()
    mine = (copy / "__0_0.distcp").read_bytes()
    (copy / "__0_0.distcp").write_bytes((longer + bytes(len(mine)))[: len(mine)])
    with pytest.raises(ReadError) as error:
        formats.read(str(copy))
    assert "__0_0.distcp" in error.value.where


def test_a_truncated_index_is_an_error(copy):
    data = (copy / ".metadata").read_bytes()
    (copy / ".metadata").write_bytes(data[: len(data) // 2])
    with pytest.raises(ReadError) as error:
        formats.read(str(copy))
    assert ".metadata" in error.value.where


def test_an_index_that_runs_code_is_refused_and_runs_nothing(copy, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (copy / ".metadata").write_bytes(pickle.dumps({"param_groups": Evil()}))
    with pytest.raises(UnsafePickle):
        formats.read(str(copy))
    assert not (tmp_path / "ran").exists()


def test_a_model_without_an_optimizer_says_so(folders):
    with pytest.raises(UnknownFormat, match="no optimizer state"):
        formats.read(str(folders / "accelerate" / "checkpoint-3" / "pytorch_model_fsdp_0"))


def test_two_optimizers_in_one_checkpoint_are_listed_and_chosen(folders):
    from ostate.read.container.dcp_index import read_index

    items = [
        DcpItem(f"{root}.state.w.{slot}", (root, "state", "w", slot), "F32", (2,), ())
        for root in ("first", "second")
        for slot in ("exp_avg", "exp_avg_sq")
    ]
    found = dcp.optimizers_of([*items, *read_index(str(folders / "nested")).items.values()])
    assert list(found) == ["first", "second", "optim"]
    with pytest.raises(ReadError, match=r"0: first; 1: second") as error:
        dcp._choose(["first", "second"], None, "here")
    assert "--optimizer" in error.value.fix
    assert dcp._choose(["first", "second"], 1, "here") == "second"


def test_keys_without_a_recorded_path_find_their_root_even_past_a_module_named_state():
    keys = ["optim.state.model.state.proj.weight.exp_avg", "optim.state.model.state.proj.weight.exp_avg_sq", "optim.state.head.weight.exp_avg"]
    found = dcp.optimizers_of([DcpItem(key, None, "F32", (2,), ()) for key in keys])
    assert list(found) == ["optim"]
    assert list(found["optim"].state) == ["model.state.proj.weight", "head.weight"]


def test_an_index_with_a_hole_or_an_overlap_is_refused():
    from ostate.read.container.dcp_index import Blob, _check_cover

    def rows(*spans):
        return [Blob("f", 0, 1, (start, 0), (stop - start, 2)) for start, stop in spans]

    _check_cover("k", (4, 2), rows((0, 2), (2, 4)), "here")
    for wrong in (rows((0, 2)), rows((0, 2), (1, 3)), rows((0, 2), (3, 5))):
        with pytest.raises(ReadError):
            _check_cover("k", (4, 2), wrong, "here")
    columns = [Blob("f", 0, 1, (0, 0), (4, 1)), Blob("f", 0, 1, (0, 0), (4, 1))]
    with pytest.raises(ReadError):
        _check_cover("k", (4, 2), columns, "here")


def test_a_path_out_of_the_folder_is_refused(copy):
    import torch.distributed.checkpoint.metadata as m

    stored = pickle.loads((copy / ".metadata").read_bytes())
    assert isinstance(stored, m.Metadata)
    for info in stored.storage_data.values():
        info.relative_path = "../" + info.relative_path
    (copy / ".metadata").write_bytes(pickle.dumps(stored))
    with pytest.raises(ReadError, match="outside its folder"):
        formats.read(str(copy))


@pytest.fixture(scope="module")
def one_process():
    """A trained model, its optimizer's state by name and its weights."""
    model = Tiny()
    optimizer = adamw(model)
    train(model, optimizer)
    return plain_truth(model, optimizer), get_optimizer_state_dict(model, optimizer), model.state_dict()


def prefixed(state, prefix):
    return {
        "state": {prefix + name: entry for name, entry in state["state"].items()},
        "param_groups": [{**group, "params": [prefix + name for name in group["params"]]} for group in state["param_groups"]],
    }


@pytest.mark.parametrize("inner", [lambda state: state, lambda state: {"DecoupledAdamW": state}])
def test_a_model_below_a_key_called_state_is_no_optimizer(one_process, tmp_path, inner):
    """As MosaicML's Composer lays a sharded checkpoint out."""
    rows, state, weights = one_process
    torch_dcp.save({"state": {"model": weights, "optimizers": inner(state), "timestamp": {"epoch": 1}}}, checkpoint_id=tmp_path, no_dist=True)
    write_truth(tmp_path, rows)
    raw = formats.read(str(tmp_path))
    check(raw, tmp_path)
    assert set(raw.weights) == set(weights)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_weights_of_a_dict_with_one_level_are_found_under_the_optimizers_names(one_process, tmp_path, prefix):
    rows, state, weights = one_process
    torch_dcp.save(
        {"optimizer": prefixed(state, prefix)} | {f"model.{prefix}{name}": value for name, value in weights.items()},
        checkpoint_id=tmp_path,
        no_dist=True,
    )
    raw = formats.read(str(tmp_path))
    assert {entry.name for entry in raw.entries} == {prefix + name for name in rows}
    assert {prefix + name for name in rows} <= set(raw.weights)
    adapter, *_ = candidates(raw).adapters
    assert set(rows) <= set(adapter.tensors)
    name = next(iter(rows))
    assert adapter.tensors[name].read().tolist() == weights[name].tolist()
