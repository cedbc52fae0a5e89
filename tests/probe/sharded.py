"""Every case on WORLD processes: `python -m tests.probe.sharded WORLD FOLDER`. Each writes what it saw as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

import ostate
from ostate.core import system
from ostate.probe import AdamPreconditioner, GradientMean, delta_h1, fill, filled, lora_adamw
from ostate.probe.precondition.shards import place_of
from tests import ranks


class Layer(nn.Module):
    """A frozen linear layer with a LoRA beside it, under PEFT's names."""

    def __init__(self, into: int, out: int, r: int):
        super().__init__()
        self.base_layer = nn.Linear(into, out, bias=False).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(into, r, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(r, out, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def network(r: int = 3, layers: int = 9) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Layer(12 if at % 2 == 0 else 10, 10 if at % 2 == 0 else 12, r) for at in range(layers)))


def data(seed: int) -> torch.Tensor:
    return torch.randn(6, 12, generator=torch.Generator().manual_seed(seed))


def loss_of(model, seed: int) -> torch.Tensor:
    x, weight = data(seed), next(model.parameters())
    if getattr(model, "tensor_parallel", False):
        from torch.distributed.tensor import Replicate, distribute_tensor

        x = distribute_tensor(x, weight.device_mesh, [Replicate()])
    loss = model(x).pow(2).mean()
    return loss.full_tensor() if hasattr(loss, "full_tensor") else loss


def trained(r: int):
    """The run whose state is saved: one process, ten steps."""
    model = network(r)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, foreach=False)
    for step in range(10):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def probe(model, optimizer, form="frozen"):
    """All numbers of one probe, as plain values."""
    pre = AdamPreconditioner(optimizer, form=form)
    means = []
    for seed in (101, 102):
        total = GradientMean(model)
        loss_of(model, seed).backward()
        total.add()
        means.append(total.mean())
    result = delta_h1(*means, 1e-3, pre).as_dict()
    result.pop("findings")
    stats = pre.stats()
    return {
        "result": result,
        "dot": pre.dot(*means),
        "stats": {key: value for key, value in stats.items() if not isinstance(value, dict)},
        "worst": stats["worst"],
    }


def tensor_parallel(model, mesh) -> None:
    """Cut layers by torch's own styles: by columns, then by rows, LoRA as its layer: Shard(0), Shard(1) and Replicate in one model."""
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
    from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

    class Replicated(ParallelStyle):
        """Whole on every rank, but a DTensor, so that gradients come as DTensors too."""

        def _apply(self, module, mesh):
            def whole(_, inputs, mesh):
                return (DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False),)

            return distribute_module(module, mesh, None, whole, lambda _, out, __: out.to_local())

    last = len(model) - 1
    for at, layer in enumerate(model):
        if at % 2:
            cut = RowwiseParallel(input_layouts=Shard(-1))
            parallelize_module(layer, mesh, {"base_layer": cut, "lora_A.default": cut, "lora_B.default": Replicated()})
        else:
            cut = ColwiseParallel(output_layouts=Replicate() if at == last else Shard(-1))
            parallelize_module(layer, mesh, {"base_layer": cut, "lora_A.default": Replicated(), "lora_B.default": cut})


def sharded(how: str, world: int):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    model, _ = trained(1 if how == "empty" else 3)
    if how in ("ddp", "fsdp1"):
        if how == "ddp":
            return nn.parallel.DistributedDataParallel(model)
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    if how in ("replicate", "mixed"):
        mesh = init_device_mesh("cpu", (world,))
        for module in model.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                placement = Shard(0) if how == "mixed" and p.shape[0] > 3 else Replicate()
                setattr(module, name, nn.Parameter(distribute_tensor(p.detach(), mesh, [placement]), requires_grad=p.requires_grad))
        assert isinstance(next(model.parameters()), DTensor)
        model.tensor_parallel = True
        return model
    if how == "tensor_parallel":
        tensor_parallel(model, init_device_mesh("cpu", (world,)))
        return model
    if how == "tensor_parallel_fsdp":
        mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))
        tensor_parallel(model, mesh["tp"])
        for layer in model:
            fully_shard(layer, mesh=mesh["dp"])
        return fully_shard(model, mesh=mesh["dp"])
    hybrid = {"hsdp": (world, 1), "hsdp_two_by_two": (2, world // 2)}
    names = ("replicate", "shard") if how in hybrid else None
    mesh = init_device_mesh("cpu", hybrid.get(how, (world,)), mesh_dim_names=names)

    def columns(p):
        return Shard(1) if p.shape[1] % world == 0 else Shard(0)

    for layer in model:
        fully_shard(layer, mesh=mesh, shard_placement_fn=columns if how == "shard1" else None)
    return fully_shard(model, mesh=mesh, shard_placement_fn=columns if how == "shard1" else None)


def check_shards(optimizer, state) -> dict[str, int]:
    """Compare every local shard with its slice of the file, number by number."""
    exact = want = 0
    report = filled(optimizer)
    for p, name in report.names.items():
        place = place_of(p)
        window = tuple(slice(at, at + n) for at, n in zip(place.offset, place.shape))
        same = True
        for slot in ("exp_avg", "exp_avg_sq"):
            whole = torch.from_numpy(state.tensor(report.entries[name], slot).copy())
            live = optimizer.state[p][slot]
            live = live.to_local() if hasattr(live, "to_local") else live
            same &= torch.equal(live, whole[window].reshape(live.shape))
            want += 4 * live.numel()
        exact += same
    return {"exact": exact, "of": len(report.names), "read": report.bytes_read, "want": want}


class Reads:
    """Bytes that this process asks of files by descriptor, while it counts."""

    def __enter__(self):
        self.count, self.pread, self.preadv = 0, system._pread, system._preadv

        def one(descriptor, length, offset):
            data = self.pread(descriptor, length, offset)
            self.count += len(data)
            return data

        def into(descriptor, views, offset):
            count = self.preadv(descriptor, views, offset)
            self.count += count
            return count

        system._pread, system._preadv = one, into
        return self

    def __exit__(self, *_):
        system._pread, system._preadv = self.pread, self.preadv


CASES = {
    2: ("uneven", "empty", "shard1", "replicate", "mixed", "hsdp", "ddp", "tensor_parallel"),
    4: ("uneven", "empty", "hsdp_two_by_two", "tensor_parallel_fsdp"),
}


def main(rank: int, world: int, folder: Path) -> None:
    found = {}
    for how in CASES[world]:
        path = folder / f"{'one' if how == 'empty' else 'three'}.safetensors"
        model = sharded(how, world)
        with Reads() as reads:
            state = ostate.load(str(path))
            optimizer = lora_adamw(model, state)
        placements = sorted({str(placement) for p in model.parameters() if hasattr(p, "placements") for placement in p.placements})
        found[how] = {"from_disk": reads.count, "placements": placements}
        found[how] |= check_shards(optimizer, state) | probe(model, optimizer)
        if how in ("uneven", "replicate"):
            found[how]["next"] = probe(model, optimizer, "next_step")
        other = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)
        fill(other, model, state)
        found[how]["filled"] = check_shards(other, state)["exact"]
        loss_of(model, 7).backward()
        other.step()
        from ostate.commands.save import save

        saved = save(optimizer, model, folder / f"saved-{how}.safetensors")
        found[how]["saved"] = saved
    model = sharded("fsdp1", world)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    report = fill(optimizer, model, ostate.load(str(folder / "three.safetensors")))
    from torch.distributed.fsdp import FullyShardedDataParallel

    whole = FullyShardedDataParallel.optim_state_dict(model, optimizer)["state"]
    if rank == 0:
        state = ostate.load(str(folder / "three.safetensors"))
        good = sum(torch.equal(whole[name]["exp_avg_sq"], torch.from_numpy(state.tensor(name, "exp_avg_sq").copy())) for name in state.parameters)
        found["fsdp1"] = {"exact": good, "of": len(state.parameters), "coverage": report.coverage}
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    ranks.run(int(sys.argv[1]), main, int(sys.argv[1]), Path(sys.argv[2]))
