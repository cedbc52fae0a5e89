"""Write every torch.distributed.checkpoint layout with two gloo processes: `python -m tests.read.make_dcp OUT`.

Truth is gathered from the live optimizer's own tensors, never through a checkpoint API.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import format_utils
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from tests import ranks

from .make_model import Tiny, adamw, record, train, write_truth

WORLD = 2


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def truth_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    rows = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = {key: whole(value) for key, value in optimizer.state[parameter].items()}
            if state:
                step = state.pop("step")
                rows[names[parameter]] = record(state, parameter.shape, step, group)
    return rows


def sharded(place: Callable[[nn.Parameter], Shard] | None = None, **more: Any) -> Tiny:
    model = Tiny(**more)
    for layer in model.layers:
        fully_shard(layer, shard_placement_fn=place)
    fully_shard(model, shard_placement_fn=place)
    return model


def trained(model: Tiny | None = None) -> tuple[Tiny, torch.optim.Optimizer]:
    model = model or sharded()
    optimizer = adamw(model)
    train(model, optimizer)
    return model, optimizer


def finish(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    rows = truth_of(model, optimizer)
    if dist.get_rank() == 0:
        write_truth(folder, rows)


def nested(out: Path) -> None:
    model, optimizer = trained()
    both = {"optim": get_optimizer_state_dict(model, optimizer), "model": get_model_state_dict(model)}
    dcp.save(both, checkpoint_id=out / "nested")
    finish(out / "nested", model, optimizer)
    dcp.save(get_optimizer_state_dict(model, optimizer), checkpoint_id=out / "optimizer_only")
    finish(out / "optimizer_only", model, optimizer)
    deep = {"app": {"state": {"optimizer": get_optimizer_state_dict(model, optimizer)}, "round": 3}}
    dcp.save(deep, checkpoint_id=out / "deep_root")
    finish(out / "deep_root", model, optimizer)
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=out / "accelerate" / "checkpoint-3" / "optimizer_0")
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=out / "accelerate" / "checkpoint-3" / "pytorch_model_fsdp_0")
    finish(out / "accelerate", model, optimizer)
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}, checkpoint_id=out / "flattened")
    finish(out / "flattened", model, optimizer)
    dcp.save({"optim": optimizer.state_dict()}, checkpoint_id=out / "integer_ids")
    finish(out / "integer_ids", model, optimizer)
    writer = dcp.FileSystemWriter(out / "threads", thread_count=2)
    dcp.save({"optim": get_optimizer_state_dict(model, optimizer)}, storage_writer=writer)
    finish(out / "threads", model, optimizer)
    full = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered = get_optimizer_state_dict(model, optimizer, options=full)
    if dist.get_rank() == 0:
        (out / "full").mkdir()
        torch.save(gathered, out / "full" / "optimizer.pt")
    finish(out / "full", model, optimizer)
    (out / "raw_ranks").mkdir(exist_ok=True)
    torch.save(optimizer.state_dict(), out / "raw_ranks" / f"optimizer_rank{dist.get_rank()}.pt")
    (out / "raw_accelerate").mkdir(exist_ok=True)
    torch.save(optimizer.state_dict(), out / "raw_accelerate" / f"optimizer_0_rank{dist.get_rank()}.bin")
    (out / "named_ranks").mkdir(exist_ok=True)
    torch.save(get_optimizer_state_dict(model, optimizer), out / "named_ranks" / f"optimizer_0_rank{dist.get_rank()}.bin")
    finish(out / "named_ranks", model, optimizer)
    finish(out / "raw_ranks", model, optimizer)
    finish(out / "raw_accelerate", model, optimizer)


def hugging_face(out: Path) -> None:
    model, optimizer = trained()
    state = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True))
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    writer = dcp.HuggingFaceStorageWriter(str(out / "hugging_face"), save_distributed=True)
    dcp.save(tensors, storage_writer=writer)
    finish(out / "hugging_face", model, optimizer)


def columns(out: Path) -> None:
    """Shard(1): a part does not span whole rows."""
    model = sharded(lambda parameter: Shard(1) if parameter.shape[1] % WORLD == 0 else Shard(0))
    model, optimizer = trained(model)
    dcp.save({"optim": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=out / "columns")
    finish(out / "columns", model, optimizer)


def resharded(out: Path) -> None:
    """Saved by two processes, read and saved again by one."""
    if dist.get_rank() == 0:
        from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
        from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

        state: dict[str, Any] = {}
        _load_state_dict(state, storage_reader=dcp.FileSystemReader(out / "nested"), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
        dcp.save(state, checkpoint_id=out / "resharded", no_dist=True)
        format_utils.dcp_to_torch_save(out / "nested", out / "one_file.pt")
        for case in ("resharded", "one_file"):
            (out / case).mkdir(exist_ok=True)
            (out / case / "truth.json").write_bytes((out / "nested" / "truth.json").read_bytes())
        (out / "one_file.pt").rename(out / "one_file" / "optimizer.pt")


def hybrid(out: Path) -> None:
    """Two replicas of one shard each: the second process holds copies."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    model = Tiny()
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model, optimizer = trained(model)
    dcp.save({"optim": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=out / "hybrid")
    finish(out / "hybrid", model, optimizer)
    (out / "hybrid_ranks").mkdir(exist_ok=True)
    torch.save(optimizer.state_dict(), out / "hybrid_ranks" / f"optim_world_size_2_rank_{dist.get_rank()}.pt")
    finish(out / "hybrid_ranks", model, optimizer)


def low_precision(out: Path) -> None:
    """A model loaded in bfloat16 with no float32 master: bfloat16 moments."""
    model = Tiny().to(torch.bfloat16)
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = adamw(model)
    for step in range(3):
        model(torch.randn(7, 10, generator=torch.Generator().manual_seed(step)).bfloat16()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    dcp.save({"optim": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=out / "bfloat16")
    finish(out / "bfloat16", model, optimizer)


def frozen_too(out: Path) -> None:
    """The optimizer is given every parameter, frozen ones too; momentum SGD."""
    model = sharded()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer)
    dcp.save({"optim": optimizer.state_dict()}, checkpoint_id=out / "sgd_frozen_ids")
    finish_sgd(out / "sgd_frozen_ids", model, optimizer)


def finish_sgd(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    rows = {}
    for name, parameter in model.named_parameters():
        state = {key: whole(value) for key, value in optimizer.state.get(parameter, {}).items()}
        if state:
            rows[name] = record(state, parameter.shape, 0, optimizer.param_groups[0])
            del rows[name]["step"]
    if dist.get_rank() == 0:
        write_truth(folder, rows, order=[name for name, _ in model.named_parameters()])


def never_stepped(out: Path) -> None:
    """What the API writes before training: a step with zero gradients, all moments zero."""
    model = sharded()
    optimizer = adamw(model)
    dcp.save({"optim": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=out / "never_stepped")


ALL = (nested, resharded, hybrid, hugging_face, columns, low_precision, frozen_too, never_stepped)


if __name__ == "__main__":
    ranks.make_all(WORLD, ALL, Path(sys.argv[1]))
