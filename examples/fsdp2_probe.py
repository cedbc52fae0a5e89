"""Probe a sharded LoRA model: each rank reads its own part of the named state, all ranks agree on delta-H1.

    torchrun --nproc_per_node 4 examples/fsdp2_probe.py lora.ostate.safetensors

The model here is a Llama of random weights, the same whatever the number of processes, so that results can be compared between 1, 2 and 4.
With `--make STEPS` one process trains its LoRA for some steps first and writes the named state.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import time

import torch
import torch.distributed as dist

import ostate
from ostate.probe import AdamPreconditioner, GradientMean, delta_h1, eval_mode, filled, lora_adamw


def build(options: argparse.Namespace, device: torch.device, world: int) -> torch.nn.Module:
    """Build the model on the meta device, shard it, and only then give it numbers: no rank ever holds it whole."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 43 // 16,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 128 or 1,
        num_key_value_heads=options.hidden // 128 or 1,
        attn_implementation="eager",  # its backward adds in a fixed order, so that 1, 2 and 4 processes can be compared
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        model = get_peft_model(model, LoraConfig(r=options.lora_rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    if world > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (world,))
        for layer in model.base_model.model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    model.to_empty(device=device)
    llama = model.base_model.model.model
    llama.rotary_emb = type(llama.rotary_emb)(config=config).to(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fill_in(parameter, name)
    return model


def fill_in(parameter: torch.Tensor, name: str) -> None:
    """Give a parameter, or this rank's shard of it, numbers that depend on its name alone."""
    generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little"))
    whole = torch.randn(parameter.shape, generator=generator, device=parameter.device) * 0.02
    if "norm" in name:
        whole.fill_(1.0)
    if hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        parameter.to_local().copy_(distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local())
    else:
        parameter.copy_(whole)


def batch(seed: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Two sequences, the same on every rank."""
    ids = torch.randint(0, 32000, (2, 128), generator=torch.Generator().manual_seed(seed)).to(device)
    return {"input_ids": ids, "labels": ids}


def make(model: torch.nn.Module, options: argparse.Namespace, device: torch.device) -> None:
    """Train for a few steps, and write the state under its names."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=device.type == "cuda")
    for step in range(options.make):
        optimizer.zero_grad()
        model(**batch(step, device)).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    ostate.save(optimizer, model, options.state, force=True)


def probe(model: torch.nn.Module, device: torch.device) -> tuple[dict, dict]:
    """Return the mean gradients of the entropy over two batches, and of the log-likelihood over two others."""
    means = []
    with eval_mode(model):
        for seeds, entropy in (((1000, 1001), True), ((1002, 1003), False)):
            total = GradientMean(model)
            for seed in seeds:
                out = model(**batch(seed, device))
                logp = out.logits.log_softmax(-1)
                (-(logp.exp() * logp).sum(-1).mean() if entropy else -out.loss).backward()
                total.add()
            means.append(total.mean())
    return means[0], means[1]


def main() -> None:
    """Parse, build, load, probe, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state")
    parser.add_argument("--make", type=int, default=0, metavar="STEPS")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--lora-rank", type=int, default=64)
    options = parser.parse_args()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    model = build(options, device, world)
    if options.make:
        make(model, options, device)
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    optimizer = lora_adamw(model, ostate.load(options.state), lr=1e-4)
    seconds = time.perf_counter() - start
    loaded = torch.cuda.max_memory_allocated() - before if cuda else 0
    start = time.perf_counter()
    preconditioner = AdamPreconditioner(optimizer)
    building = time.perf_counter() - start
    result = delta_h1(*probe(model, device), 1e-4, preconditioner)
    report = filled(optimizer)
    seen = {
        "rank": rank,
        "coverage": report.coverage,
        "bytes_read": report.bytes_read,
        "load_seconds": round(seconds, 3),
        "gigabytes_per_second": round(report.bytes_read / seconds / 1e9, 2),
        "load_peak_device_megabytes": round(loaded / 1e6),
        "peak_host_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "preconditioner_seconds": round(building, 3),
        "delta_h1": float(f"{result.value:.12g}"),
        "bars_dot_identity": result.bars_dot_identity,
        "ratio": result.ratio,
        "plausible_ratio": result.plausible_ratio,
        "verdict": result.verdict,
    }
    every = [seen]
    if world > 1:
        every = [None] * world
        dist.all_gather_object(every, seen)
        dist.destroy_process_group()
    if rank == 0:
        for line in every:
            print(json.dumps(line))


if __name__ == "__main__":
    main()
