"""Megatron's keys in a torch.distributed.checkpoint folder.

Megatron itself needs GPUs; its keys are written here with torch's own writer, as megatron/core/optimizer/distrib_optimizer.py names them
(sharded_param_state_fully_reshardable, sharded_param_state_dp_reshardable).
"""

from __future__ import annotations

import argparse
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ostate import read as formats
from ostate.errors import ReadError

NAMES = {"decoder.layers.self_attention.linear_qkv.adapter.linear_in.weight": (2, 3, 8), "decoder.layers.mlp.linear_fc1.weight": (2, 8, 4)}


def by_name(**more):
    """`optimizer.state.<slot>.<parameter>`, parameters stacked over layers, as homogeneous layers are saved."""
    torch.manual_seed(0)
    state = {}
    for name, shape in NAMES.items():
        state[name] = torch.randn(shape)
        for slot in ("exp_avg", "exp_avg_sq", "param"):
            state[f"optimizer.state.{slot}.{name}"] = torch.rand(shape)
    return state | more


def save(state, folder):
    dcp.save(state, checkpoint_id=folder, no_dist=True)


def test_the_fully_reshardable_form_is_read_by_name(tmp_path):
    state = by_name()
    groups = [{"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.01, "step": 12, "wd_mult": 1.0}]
    save(state, tmp_path)
    torch.save({"optimizer": {"optimizer": {"param_groups": groups}}, "iteration": 12}, tmp_path / "common.pt")
    raw = formats.read(str(tmp_path))
    assert raw.recorded == "megatron"
    assert {entry.name for entry in raw.entries} == set(NAMES)
    for entry in raw.entries:
        assert set(entry.slots) == {"exp_avg", "exp_avg_sq"}
        assert entry.step == 12.0
        assert (entry.slots["exp_avg_sq"].read() == state[f"optimizer.state.exp_avg_sq.{entry.name}"].numpy()).all()
        assert (raw.master[entry.position].read() == state[f"optimizer.state.param.{entry.name}"].numpy()).all()
        assert (raw.weights[entry.name].read() == state[entry.name].numpy()).all()
    assert raw.groups[0].hyper["betas"] == [0.9, 0.95]
    assert not raw.findings


def test_megatrons_own_index_class_and_its_arguments_beside_the_groups_are_read_past(tmp_path, monkeypatch):
    """Megatron's index is a class of its own derived from torch's, and its arguments hold enumerations of its own."""
    import dataclasses
    import enum
    import sys
    import types

    from torch.distributed.checkpoint.metadata import Metadata

    module = types.ModuleType("megatron_stand_in")
    module.MCoreMetadata = dataclasses.make_dataclass("MCoreMetadata", [("mcore_data", dict, None)], bases=(Metadata,))
    module.ModelType = enum.Enum("ModelType", ["encoder_or_decoder"])
    monkeypatch.setitem(sys.modules, "megatron_stand_in", module)
    for made in (module.MCoreMetadata, module.ModelType):
        made.__module__ = "megatron_stand_in"
    state = by_name()
    save(state, tmp_path)
    index = pickle.loads((tmp_path / ".metadata").read_bytes())
    (tmp_path / ".metadata").write_bytes(pickle.dumps(module.MCoreMetadata(**vars(index), mcore_data={"nd_reformulated": {}})))
    groups = [{"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.01, "step": 12}]
    arguments = argparse.Namespace(model_type=module.ModelType.encoder_or_decoder)
    torch.save({"optimizer": {"param_groups": groups}, "args": arguments}, tmp_path / "common.pt")
    monkeypatch.delitem(sys.modules, "megatron_stand_in")
    raw = formats.read(str(tmp_path))
    assert {entry.name for entry in raw.entries} == set(NAMES)
    assert {entry.step for entry in raw.entries} == {12.0}
    assert raw.groups[0].hyper["betas"] == [0.9, 0.95]


def test_groups_that_differ_keep_what_they_agree_on_and_say_so(tmp_path):
    save(by_name(), tmp_path)
    groups = [{"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": decay, "step": 12} for decay in (0.01, 0.0)]
    torch.save({"optimizer": {"param_groups": groups}}, tmp_path / "common.pt")
    raw = formats.read(str(tmp_path))
    assert "weight_decay" not in raw.groups[0].hyper
    assert raw.groups[0].hyper["eps"] == 1e-8
    assert [finding.rule for finding in raw.findings] == ["groups-merged"]


def test_without_common_state_the_loss_is_said_aloud(tmp_path):
    save(by_name(), tmp_path)
    assert [finding.rule for finding in formats.read(str(tmp_path)).findings] == ["hyperparameters-missing"]


def test_buckets_are_refused_with_the_way_out(tmp_path):
    bucket = "optimizer.distributed.dp_group_idx_0.gbuf_idx_0.dtype_(torch.bfloat16, torch.float32).bucket_idx_0"
    save({f"{bucket}.{slot}": torch.rand(64) for slot in ("exp_avg", "exp_avg_sq", "param")}, tmp_path)
    with pytest.raises(ReadError, match="buckets") as error:
        formats.read(str(tmp_path))
    assert "fully_reshardable" in error.value.fix


def test_flattened_pieces_are_refused_with_the_way_out(tmp_path):
    name = "decoder.layers.mlp.linear_fc1.weight"
    save(by_name(**{f"optimizer.state.exp_avg.{name}": torch.rand(64)}), tmp_path)
    with pytest.raises(ReadError, match="flattened"):
        formats.read(str(tmp_path))
