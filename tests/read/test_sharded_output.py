"""A distributed checkpoint too large for one file: `repair` writes shards with an index, which ostate and torch read like one file."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open

import ostate
from ostate import store
from ostate.commands import repair as program
from tests import real

LIMIT = 4096
"""Bytes of tensors a file, in place of fifty gigabytes."""
FOLDERS = ["ds_z2", "ds_z3", "ds_z2_universal", "fsdp2_dcp", "fsdp2_dcp_intids", "trainer_fsdp2_shard", "hfstorage_fsdp2"]


@pytest.mark.parametrize("name", FOLDERS)
def test_shards_and_their_index_hold_what_one_file_holds(name, tmp_path, monkeypatch):
    one = real.case(name)
    more = {"adapter": str(one.adapter)} if one.adapter is not None else {}
    if name == "hfstorage_fsdp2":
        more |= {"betas": (0.9, 0.999), "eps": 1e-8}
    whole = program.repair(str(one.state), str(tmp_path / "whole.safetensors"), **more)
    monkeypatch.setattr(program.store, "write", functools.partial(store.write, max_shard_bytes=LIMIT))
    (tmp_path / "named").mkdir()
    done = program.repair(str(one.state), str(tmp_path / "named/big.safetensors"), **more)
    assert done.ordering.verdict == whole.ordering.verdict
    assert len(done.out) > 2
    index = tmp_path / "named/big.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    assert set(files) == {key for shard in set(files.values()) for key in _keys(tmp_path / "named" / shard)}
    assert not [finding for finding in ostate.validate(str(index), deep=True) if finding.severity == "error"]
    mine, want = ostate.load(str(index)), ostate.load(str(tmp_path / "whole.safetensors"))
    assert list(mine.parameters) == list(want.parameters)
    assert [dict(group.hyper) for group in mine.groups] == [dict(group.hyper) for group in want.groups]
    for name_, parameter in want.parameters.items():
        assert mine.parameters[name_].step == parameter.step
        for slot in parameter.slots:
            np.testing.assert_array_equal(mine.tensor(name_, slot), want.tensor(name_, slot))
    targets = {f"state.{name_}.exp_avg_sq": torch.zeros(parameter.shape) for name_, parameter in want.parameters.items()}
    dcp.load(targets, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path / "named")), no_dist=True)
    for name_ in want.parameters:
        np.testing.assert_array_equal(targets[f"state.{name_}.exp_avg_sq"].numpy(), want.tensor(name_, "exp_avg_sq"))


def _keys(path):
    with safe_open(str(path), "np") as file:
        return list(file.keys())
