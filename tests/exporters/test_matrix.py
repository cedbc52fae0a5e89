"""Every layout, loaded by the programs that read it: what arrives is what the run's own optimizer.pt holds, bit for bit."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

import ostate
from ostate.exporters import EXPORTERS
from tests import ranks, trained

from .matrix import FURTHER, ROWS, Stopped, renewed
from .test_resume import STOP, adapted, trainer

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "recipes" / "index.md"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """OPT with trained biases, stopped: Trainer's second group is not empty."""
    root = tmp_path_factory.mktemp("matrix")
    trained.opt(layers=2).save_pretrained(root / "base")
    whole = trainer(root / "run", adapted(root / "base", bias="all"))
    whole.train()
    checkpoint = root / "run" / f"checkpoint-{STOP}"
    named = str(root / "named.ostate.safetensors")
    ostate.repair(str(checkpoint), named, adapter=str(checkpoint), base=str(root / "base"))
    names = {p: name for name, p in whole.model.named_parameters()}
    return Stopped(root / "base", checkpoint, named, [[names[p] for p in group["params"]] for group in whole.optimizer.optimizer.param_groups])


@pytest.fixture(scope="module")
def truth(run):
    """What the run's own optimizer.pt holds, by the names of its live optimizer."""
    saved = torch.load(run.checkpoint / "optimizer.pt", weights_only=True)
    names = [name for group in run.groups for name in group]
    return {names[position]: entry for position, entry in saved["state"].items()}


def scheduler_beside(folder):
    """Another optimizer of the same program, saved with a scheduler: what its own folder holds and ours has not."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for _ in range(7):
        scheduler.step()
    dcp.save({"optim": {"state.x.step": torch.tensor(1.0)}, "sched": scheduler.state_dict()}, checkpoint_id=str(folder), no_dist=True)
    return str(folder)


@pytest.fixture(scope="module")
def sharded(run, tmp_path_factory):
    """What each reader of `load_sharded.py` holds after loading on two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "base").symlink_to(run.base)
    (folder / "groups.json").write_text(json.dumps(run.groups))
    for to, options in (("dcp", {}), ("dcp-flat", {"root": "optimizer"}), ("dcp-positions", {}), ("less", {})):
        ostate.export(run.named, to, folder / (EXPORTERS[to].file or to), **options)
    for place in ("accelerate", "automodel", "quantised"):
        (folder / place).mkdir()
    ostate.export(run.named, "dcp", folder / "accelerate" / "optimizer_0", root="optimizer")
    ostate.export(run.named, "dcp-flat", folder / "automodel" / "optim", rest=scheduler_beside(folder / "beside"))
    ostate.export(run.named, "dcp-positions", folder / "quantised" / "optim", rest=folder / "beside")
    ranks.program("tests.exporters.load_sharded", folder, folder / "out.pt", 2)
    return torch.load(folder / "out.pt", weights_only=True)


def named(row):
    return f"{row.to}-{row.load if isinstance(row.load, str) else row.load.__name__}"


def needs(row):
    absent = row.package is not None and importlib.util.find_spec(row.package) is None
    return pytest.param(row, marks=pytest.mark.skipif(absent, reason=f"{row.package} is not installed"), id=named(row))


@pytest.mark.parametrize("row", [needs(row) for row in ROWS])
def test_what_arrives_is_what_the_run_had(row, run, truth, tmp_path, request):
    if isinstance(row.load, str):
        seen = request.getfixturevalue("sharded")[row.load]
        found = seen["state"]
        assert [group["weight_decay"] for group in seen["settings"]] == [0.1, 0.0]
    else:
        place = "state.ostate.safetensors" if row.to == "ostate" else EXPORTERS[row.to].file or "folder"
        ostate.export(run.named, row.to, tmp_path / place)
        found = row.load(run, tmp_path)
    assert set(found) == {name for name, entry in truth.items() if row.names == "all" or (entry["exp_avg"].ndim == 2 and name.endswith(".weight"))}
    for name, entry in found.items():
        for slot in row.slots:
            assert torch.equal(torch.as_tensor(entry[slot]), truth[name][slot].reshape(entry[slot].shape)), (name, slot)


def test_every_layout_has_a_reader():
    assert {row.to for row in ROWS} | {to for to, *_ in FURTHER} == {*EXPORTERS, "ostate"}


def test_the_table_on_the_page_is_that_of_the_rows():
    page = PAGE.read_text(encoding="utf-8")
    assert renewed(page) == page, "run: python -m tests.exporters.matrix docs/recipes/index.md"
