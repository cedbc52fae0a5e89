"""Write what verl's FSDP actors save, with two gloo processes: `python -m tests.read.make_verl OUT`.

verl/utils/checkpoint/fsdp_checkpoint_manager.py: every process saves `model.state_dict()` and `optimizer.state_dict()` as they are, the optimizer
made over all parameters. LoRA of odd sizes, so that FSDP1 pads its FlatParameters. Truth is the live optimizer's exp_avg_sq by live name.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

from tests import ranks
from tests.trained import llama

WORLD = 2


def tuned(width: int = 33) -> Any:
    torch.manual_seed(0)
    model = llama(6, hidden_size=width, num_attention_heads=3, num_key_value_heads=3, head_dim=12)
    return peft.get_peft_model(model, peft.LoraConfig(r=5, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


def train(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    draw = torch.Generator().manual_seed(3)
    model.train()
    for _ in range(14):
        ids = torch.randint(0, 12, (8, 12), generator=draw)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return optimizer


def write(folder: Path, weights: Any, optimizer: torch.optim.Optimizer, truth: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rank = dist.get_rank()
    torch.save(weights, folder / f"model_world_size_{WORLD}_rank_{rank}.pt")
    torch.save(optimizer.state_dict(), folder / f"optim_world_size_{WORLD}_rank_{rank}.pt")
    torch.save({"lr_scheduler": None, "rng": {"cpu": torch.get_rng_state()}}, folder / f"extra_state_world_size_{WORLD}_rank_{rank}.pt")
    if rank == 0:
        torch.save(truth, folder.parent / "truth.pt")
    dist.barrier()


def fsdp2(out: Path) -> None:
    model = tuned()
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = train(model)
    truth = {name: optimizer.state[p]["exp_avg_sq"].full_tensor() for name, p in model.named_parameters() if p.requires_grad}
    write(out / "fsdp2" / "actor", model.state_dict(), optimizer, truth)


def fsdp1(out: Path, kind: str = "fsdp1", width: int = 33) -> None:
    model = tuned(width)
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    leaf = partial(lambda_auto_wrap_policy, lambda_fn=lambda one: not list(one.children()) and getattr(one, "weight", None) is not None)
    wrapped = FullyShardedDataParallel(model, auto_wrap_policy=leaf, use_orig_params=False, device_id=torch.device("cpu"))
    optimizer = train(wrapped)
    truth = {}
    for (name, shape), p in zip(shapes.items(), [p for p in wrapped.parameters() if p.requires_grad]):
        own = optimizer.state[p]["exp_avg_sq"].contiguous()
        parts = [torch.empty_like(own) for _ in range(WORLD)]
        dist.all_gather(parts, own)
        truth[name] = torch.cat(parts)[: shape.numel()].view(shape)
    with FullyShardedDataParallel.state_dict_type(wrapped, StateDictType.SHARDED_STATE_DICT):
        weights = wrapped.state_dict()
    write(out / kind / "actor", weights, optimizer, truth)


def fsdp1_of_one_size(out: Path) -> None:
    """Flat parameters of lora_A (5, 36) and of lora_B (36, 5): 180 numbers each."""
    fsdp1(out, "fsdp1-of-one-size", 36)


def main(rank: int, out: str) -> None:
    for make in (fsdp2, fsdp1, fsdp1_of_one_size):
        make(Path(out))
        dist.barrier()


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    ranks.run(WORLD, main, sys.argv[1])
