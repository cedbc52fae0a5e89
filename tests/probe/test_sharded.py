"""Two real processes (gloo): FSDP2, DTensors, HSDP, DDP and FSDP1, against the numbers of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ostate
from ostate.probe import lora_adamw
from ostate.saving import save

from .sharded import network, probe, trained

ROOT = Path(__file__).parent.parent.parent
HOWS = ("uneven", "empty", "shard1", "replicate", "mixed", "hsdp", "ddp")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks saw, and the folder with the files."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, r in [("three", 3), ("one", 1)]:
        model, optimizer = trained(r)
        save(optimizer, model, folder / f"{name}.safetensors")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.probe.sharded"]
    running = [
        subprocess.Popen(
            [*command, str(rank), "2", str(folder)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(said)[-4000:]
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(ranks):
    """The same probe in one process, by rank of the LoRA."""
    out = {}
    for name, r in [("three", 3), ("one", 1)]:
        model = trained(r)[0]
        optimizer = lora_adamw(model, ostate.load(str(ranks[0] / f"{name}.safetensors")))
        out[name] = probe(model, optimizer) | {"next": probe(model, optimizer, "next_step")}
    return out


@pytest.mark.parametrize("how", HOWS)
def test_every_rank_holds_exactly_its_shard_and_read_no_other_byte(ranks, how):
    for seen in ranks[1]:
        assert (seen[how]["exact"], seen[how]["of"]) == (18, 18)
        assert seen[how]["filled"] == 18
        assert seen[how]["read"] == seen[how]["want"]
    total = sum(seen[how]["read"] for seen in ranks[1])
    whole = sum(8 * p.numel() for p in network(1 if how == "empty" else 3).parameters() if p.requires_grad)
    if how == "mixed":
        assert whole < total < 2 * whole
    else:
        assert total == whole * (1 if how in ("uneven", "empty", "shard1") else 2)


@pytest.mark.parametrize("how", HOWS)
def test_numbers_and_verdict_are_those_of_one_process_on_every_rank(ranks, alone, how):
    want = alone["one" if how == "empty" else "three"]
    first, second = (seen[how] for seen in ranks[1])
    for key in ("result", "dot", "stats"):
        assert first[key] == second[key]
    assert first["result"]["verdict"] == want["result"]["verdict"] == "healthy"
    assert first["result"]["value"] == pytest.approx(want["result"]["value"], rel=1e-6)
    assert first["dot"] == pytest.approx(want["dot"], rel=1e-6)
    for key, value in want["stats"].items():
        assert first["stats"][key] == pytest.approx(value, rel=1e-6), key
    if "next" in first:
        assert first["next"]["result"]["value"] == pytest.approx(want["next"]["result"]["value"], rel=1e-6)


@pytest.mark.parametrize("how", HOWS)
def test_a_state_saved_from_ranks_is_sound_and_the_same(ranks, how):
    folder, seen = ranks
    name = "one" if how == "empty" else "three"
    assert seen[0][how]["saved"] == seen[1][how]["saved"]
    path = seen[0][how]["saved"]
    assert path.endswith(".index.json") == (how != "ddp")
    assert [f for f in ostate.validate(path, deep=True) if f.severity == "error"] == []
    back, want = ostate.load(path), ostate.load(str(folder / f"{name}.safetensors"))
    assert set(back.parameters) == set(want.parameters)
    for parameter in want.parameters:
        assert back.parameters[parameter].step == want.parameters[parameter].step == 10
        assert back.hyper(parameter)["betas"] == want.hyper(parameter)["betas"]
        for slot in ("exp_avg", "exp_avg_sq"):
            np.testing.assert_array_equal(back.tensor(parameter, slot), want.tensor(parameter, slot))


def test_fsdp1_is_filled_through_its_own_interface(ranks):
    assert ranks[1][0]["fsdp1"] == {"exact": 18, "of": 18, "coverage": 1.0}


def test_torch_reads_the_same_file_by_itself(ranks, tmp_path):
    """The named file is what torch.distributed.checkpoint's own Hugging Face reader reads, key for key."""
    import shutil

    reader = pytest.importorskip("torch.distributed.checkpoint").HuggingFaceStorageReader
    import torch.distributed.checkpoint as dcp

    shutil.copy(ranks[0] / "three.safetensors", tmp_path / "three.safetensors")
    want = ostate.load(str(tmp_path / "three.safetensors"))
    targets = {f"state.{name}.exp_avg_sq": torch.zeros(p.shape) for name, p in want.parameters.items()}
    dcp.load(targets, storage_reader=reader(str(tmp_path)), no_dist=True)
    for name in want.parameters:
        np.testing.assert_array_equal(targets[f"state.{name}.exp_avg_sq"].numpy(), want.tensor(name, "exp_avg_sq"))


def test_one_process_saves_one_file_and_steps_on_from_it(tmp_path):
    model, optimizer = trained(3)
    path = save(optimizer, model, tmp_path / "live.ostate.safetensors")
    twin, _ = trained(3)
    mine = lora_adamw(twin, ostate.load(path), foreach=False)
    for m, o in ((model, optimizer), (twin, mine)):
        m(torch.ones(2, 12)).sum().backward()
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))
    with pytest.raises(ostate.OstateError, match="the output exists already"):
        save(optimizer, model, path)
