"""Load a universal checkpoint with DeepSpeed itself over gloo: `python -m tests.exporters.load_universal IN OUT STAGE WORLD`.

IN holds `universal`; OUT gets, by name, the moments and weights that the engine holds after loading.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from tests import ranks

SLOTS = ("exp_avg", "exp_avg_sq")


def main(rank: int, given: Path, out: Path, stage: int) -> None:
    # A shared-memory speed-up, which would be compiled for minutes; gloo does without.
    import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    deepspeed.init_distributed("gloo")
    model = torch.nn.ModuleDict({name: torch.nn.Linear(5, 3) for name in ("one", "two", "three")})
    model["three"].requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([{"params": trained[:2], "weight_decay": 0.1}, {"params": trained[2:], "weight_decay": 0.0}], lr=1e-3)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
        "checkpoint": {"load_universal": True},
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    path, _ = engine.load_checkpoint(str(given), tag="universal", load_module_strict=False)
    assert path, "DeepSpeed found no checkpoint"
    found = {
        name: {slot: safe_get_full_optimizer_state(p, slot).clone() for slot in SLOTS} | {"fp32": safe_get_full_fp32_param(p).clone()}
        for name, p in engine.module.named_parameters()
        if p.requires_grad
    }
    steps = [float(state["step"]) for state in engine.optimizer.optimizer.state.values()]
    if rank == 0:
        torch.save({"found": found, "steps": steps, "decay": [group["weight_decay"] for group in engine.optimizer.param_groups]}, out)


if __name__ == "__main__":
    ranks.run(int(sys.argv[4]), main, Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
