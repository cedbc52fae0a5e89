"""Load what we wrote into FSDP2 over gloo, as each program does it: `python -m tests.exporters.load_sharded IN OUT WORLD`.

IN holds `base`, `adapter`, `groups.json` and the exports; OUT gets, by reader, the settings and by name the state that the optimizer holds then.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests import ranks


def by_name(given, model, optimizer):
    """torch's own functions on a nested dict: FSDP2, and what Trainer and Lightning do."""
    made = get_optimizer_state_dict(model, optimizer)
    dcp.load({"optim": made}, checkpoint_id=given / "dcp")
    set_optimizer_state_dict(model, optimizer, made)


def flattened(given, model, optimizer):
    """One level of keys: torchtitan components/optimizer.py, OptimizersContainer."""
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    made = get_optimizer_state_dict(model, optimizer, options=options)
    dcp.load({"optimizer": made}, checkpoint_id=given / "dcp-flat")
    set_optimizer_state_dict(model, optimizer, made, options=options)


def by_position(given, model, optimizer):
    """`optimizer.state_dict()` as it is: NeMo Automodel on a quantised model."""
    get_optimizer_state_dict(model, optimizer)  # makes the entries that are to be filled
    made = optimizer.state_dict()
    dcp.load({"optim": made}, checkpoint_id=given / "dcp-positions")
    optimizer.load_state_dict(made)


def full(given, model, optimizer):
    """A full state dict that rank 0 reads and the others are sent."""
    rank = dist.get_rank()
    made = torch.load(given / "optimizer.bin", weights_only=True) if rank == 0 else {}
    set_optimizer_state_dict(model, optimizer, made, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))


def accelerates(given, model, optimizer):
    """Accelerate's own function, on a folder that `Accelerator.save_state` would have made."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import load_fsdp_optimizer

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    load_fsdp_optimizer(plugin, Accelerator(cpu=True), optimizer, model, str(given / "accelerate"))


def automodels(given, model, optimizer, place="automodel"):
    """NeMo Automodel's own OptimizerState with a scheduler, loaded as its Checkpointer does."""
    from nemo_automodel.components.checkpoint.stateful_wrappers import OptimizerState

    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    wrapped = OptimizerState(model, optimizer, scheduler, is_peft=True)
    made = wrapped.state_dict()
    dcp.load(made, checkpoint_id=given / place / "optim")
    wrapped.load_state_dict(made)
    assert scheduler.last_epoch == 7, "what else the folder held came along"


def automodels_quantised(given, model, optimizer):
    """The same over a model that has a quantised layer, as far as it asks: by position."""
    model.get_base_model().lm_head.quant_state = object()
    automodels(given, model, optimizer, "quantised")


READERS = {"by_name": by_name, "flattened": flattened, "by_position": by_position, "full": full, "accelerates": accelerates}
if find_spec("nemo_automodel") is not None:
    READERS |= {"automodels": automodels, "automodels_quantised": automodels_quantised}


def adamw(model, groups):
    live = dict(model.named_parameters())
    return torch.optim.AdamW([{"params": [live[name] for name in names]} for names in groups], lr=1.0, weight_decay=0.5)


def main(rank: int, given: Path, out: Path, world: int) -> None:
    from .test_resume import adapted

    os.environ["ACCELERATE_USE_CPU"] = "true"
    model = adapted(given / "base", bias="all")
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    groups = json.loads((given / "groups.json").read_text())
    found = {}
    for reader, load in READERS.items():
        optimizer = adamw(model, groups)
        load(given, model, optimizer)
        names = {p: name for name, p in model.named_parameters()}
        state = {
            names[p]: {slot: value.full_tensor() if hasattr(value, "full_tensor") else value for slot, value in entry.items()}
            for p, entry in optimizer.state.items()
        }
        settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        found[reader] = {"state": state, "settings": settings}
    if rank == 0:
        torch.save(found, out)


if __name__ == "__main__":
    ranks.run(int(sys.argv[3]), main, Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
