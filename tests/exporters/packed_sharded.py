"""torchao's optimizers over FSDP2, saved, repaired, exported and resumed: `python -m tests.exporters.packed_sharded OUT WORLD`.

OUT gets, by optimizer and exporter, whether the resumed run is the one that was not stopped, and what ostate said.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torchao.optim
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import ostate
from tests import ranks

OPTIMIZERS = {"8bit": torchao.optim.AdamW8bit, "4bit": torchao.optim.AdamW4bit, "fp8": torchao.optim.AdamWFp8}


def made(world):
    """Two matrices of 4096 elements on each process, as many as torchao packs, and biases, which it does not."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64 * world), torch.nn.Linear(64 * world, 64))
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    return model


def numbers(sharded, world):
    """What each process's own tensor means, one below the other; gloo gathers no 8-bit floats."""
    own = sharded.to_local()
    rows = [None] * world
    dist.all_gather_object(rows, own if type(own) is torch.Tensor else own.dequantize())
    return torch.cat(rows)


def steps(model, optimizer, seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(8, 64, generator=generator)).square().mean().backward()
        optimizer.step()


def weights(model):
    return {name: parameter.full_tensor().detach().clone() for name, parameter in model.named_parameters()}


def resumed(kind, world, start, place, flat):
    model = made(world)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.distributed.tensor.distribute_tensor(start[name], parameter.device_mesh, parameter.placements))
    optimizer, options = OPTIMIZERS[kind](model.parameters()), StateDictOptions(flatten_optimizer_state_dict=flat)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    dcp.load({"optim": state}, checkpoint_id=place)
    set_optimizer_state_dict(model, optimizer, state, options=options)
    steps(model, optimizer, 2)
    return weights(model)


def main(rank: int, out: Path, world: int) -> None:
    torch.compiler.set_stance("force_eager")
    found = {}
    for kind, optimizer_class in OPTIMIZERS.items():
        model = made(world)
        optimizer = optimizer_class(model.parameters())
        steps(model, optimizer, 1)
        dcp.save({"optim": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=out / kind / "saved")
        start = weights(model)
        names = {parameter: name for name, parameter in model.named_parameters()}
        live = {names[p]: {slot: numbers(entry[slot], world) for slot in ("exp_avg", "exp_avg_sq")} for p, entry in optimizer.state.items()}
        steps(model, optimizer, 2)
        whole = weights(model)
        if rank == 0:
            named = str(out / kind / "named.safetensors")
            ostate.repair(str(out / kind / "saved"), named, evidence=False)
            state = ostate.load(named)
            rules = {to: [f.rule for f in ostate.export(named, to, out / kind / to).findings] for to in ("dcp", "dcp-flat")}
            ostate.export(named, "dcp", out / kind / "adamw", taken_as="adamw_torch")
            found[kind] = {"rules": rules, "decoded_from": sorted({p.decoded_from for p in state.parameters.values()})}
            found[kind]["read"] = all(
                torch.equal(torch.as_tensor(state.tensor(name, slot)), value) for name, slots in live.items() for slot, value in slots.items()
            )
        dist.barrier()
        for to in ("dcp", "dcp-flat"):
            again = resumed(kind, world, start, out / kind / to, to == "dcp-flat") if kind != "fp8" else None
            if rank == 0:
                found[kind][to] = again and all(torch.equal(whole[name], again[name]) for name in whole)
    if rank == 0:
        (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    ranks.run(int(sys.argv[2]), main, Path(sys.argv[1]), int(sys.argv[2]))
