"""Two real processes (gloo): FSDP2, DTensors, HSDP, DDP and FSDP1, against the numbers of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ostate
from ostate.commands.save import save
from ostate.probe import lora_adamw
from tests.ranks import program

from .sharded import CASES, network, probe, trained


def started(folder: Path, world: int) -> tuple[Path, list[dict[str, Any]]]:
    """Return what each of `world` ranks saw, and the folder with the files."""
    for name, r in [("three", 3), ("one", 1)]:
        model, optimizer = trained(r)
        save(optimizer, model, folder / f"{name}.safetensors")
    program("tests.probe.sharded", world, folder)
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return started(tmp_path_factory.mktemp("ranks"), 2)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return started(tmp_path_factory.mktemp("four"), 4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same probe in one process, by rank of the LoRA."""
    out, folder = {}, tmp_path_factory.mktemp("alone")
    for name, r in [("three", 3), ("one", 1)]:
        model, optimizer = trained(r)
        optimizer = lora_adamw(model, ostate.load(save(optimizer, model, folder / f"{name}.safetensors")))
        out[name] = probe(model, optimizer) | {"next": probe(model, optimizer, "next_step")}
    return out


EVERY = [*((2, how) for how in CASES[2]), *(pytest.param(4, how, marks=pytest.mark.long) for how in CASES[4])]
"""World size and how its model is cut."""
MAPPED = ("shard1", "tensor_parallel", "tensor_parallel_fsdp")
"""Cuts along columns: those tensors are read through a map, page by page, and not by descriptor."""


@pytest.fixture
def seen_by(request):
    """What ran with so many ranks, started when first asked for."""
    return lambda world: request.getfixturevalue({2: "ranks", 4: "four"}[world])


@pytest.mark.parametrize(("world", "how"), EVERY)
def test_every_rank_holds_exactly_its_shard_and_read_no_other_byte(seen_by, world, how):
    folder, every = seen_by(world)
    file = (folder / f"{'one' if how == 'empty' else 'three'}.safetensors").read_bytes()
    header = 8 + int.from_bytes(file[:8], "little")
    for seen in every:
        assert (seen[how]["exact"], seen[how]["of"]) == (18, 18)
        assert seen[how]["filled"] == 18
        assert seen[how]["read"] == seen[how]["want"]
        share = seen[how]["from_disk"] - header - 16  # the first bytes, once more, that tell what kind of file it is
        assert share == seen[how]["want"] if how not in MAPPED else 0 < share < seen[how]["want"]
    total = sum(seen[how]["read"] for seen in every)
    whole = sum(8 * p.numel() for p in network(1 if how == "empty" else 3).parameters() if p.requires_grad)
    if "R" in every[0][how]["placements"] and how not in ("hsdp", "hsdp_two_by_two", "replicate"):
        assert whole < total < 2 * whole
    else:
        assert total == whole * (1 if how in ("uneven", "empty", "shard1") else 2)


@pytest.mark.parametrize(
    ("world", "how", "placements"),
    [
        (2, "tensor_parallel", ["R", "S(0)", "S(1)"]),
        (2, "shard1", ["S(0)", "S(1)"]),
        pytest.param(4, "hsdp_two_by_two", ["R", "S(0)"], marks=pytest.mark.long),
        pytest.param(4, "tensor_parallel_fsdp", ["R", "S(0)", "S(1)", "_S(0, 2)"], marks=pytest.mark.long),
    ],
)
def test_a_model_is_really_cut_as_its_case_says(seen_by, world, how, placements):
    assert seen_by(world)[1][0][how]["placements"] == placements


@pytest.mark.parametrize(("world", "how"), EVERY)
def test_numbers_and_verdict_are_those_of_one_process_on_every_rank(seen_by, alone, world, how):
    want = alone["one" if how == "empty" else "three"]
    first, *others = (seen[how] for seen in seen_by(world)[1])
    for key in ("result", "dot", "stats"):
        assert all(first[key] == other[key] for other in others)
    assert first["result"]["verdict"] == want["result"]["verdict"] == "healthy"
    # Cut along columns, the model itself adds float32 products in another order.
    near = 1e-5 if how.startswith("tensor_parallel") else 1e-6
    assert first["result"]["value"] == pytest.approx(want["result"]["value"], rel=near)
    assert first["dot"] == pytest.approx(want["dot"], rel=near)
    for key, value in want["stats"].items():
        assert first["stats"][key] == pytest.approx(value, rel=near), key
    if "next" in first:
        assert first["next"]["result"]["value"] == pytest.approx(want["next"]["result"]["value"], rel=1e-6)


@pytest.mark.parametrize(("world", "how"), EVERY)
def test_a_state_saved_from_ranks_is_sound_and_the_same(seen_by, world, how):
    folder, seen = seen_by(world)
    name = "one" if how == "empty" else "three"
    assert len({each[how]["saved"] for each in seen}) == 1
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


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.long)])
def test_fsdp1_is_filled_through_its_own_interface(seen_by, world):
    assert seen_by(world)[1][0]["fsdp1"] == {"exact": 18, "of": 18, "coverage": 1.0}


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
