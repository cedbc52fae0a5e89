"""Write every DeepSpeed ZeRO layout with two gloo processes on the CPU: `DS_ACCELERATOR=cpu python -m tests.formats.make_zero OUT`.

Truth is the live optimizer's own numbers, under names that a plain torch AdamW on the same batches proves: that one owes nothing to
DeepSpeed, but sums in another order, so it agrees to a few last bits only. In bfloat16 it agrees bit for bit and is itself the truth.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from .make_model import Tiny, adamw, batch, digest, plain_truth, train, write_truth

WORLD = 2
WIDTH = 10


def engine_for(config: dict[str, Any], ranks: tuple[int, ...] = (3, 3, 1)) -> Any:
    model = Tiny(ranks=ranks)
    optimizer = adamw(model)
    settings = {"train_micro_batch_size_per_gpu": 7, "zero_allow_untested_optimizer": True, "steps_per_print": 1000, **config}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine


def train_engine(engine: Any, dtype: torch.dtype = torch.float32, steps: int = 3) -> None:
    for step in range(steps):
        engine.backward(engine(batch(WIDTH, step).to(dtype)).float().square().mean())
        engine.step()


def reference() -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """Truth and numbers of a plain AdamW."""
    model = Tiny()
    optimizer = adamw(model)
    train(model, optimizer)
    names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    numbers = {name: {**optimizer.state[parameter], "master": parameter.detach()} for name, parameter in names.items()}
    return plain_truth(model, optimizer), numbers


def live_numbers(engine: Any) -> dict[str, dict[str, torch.Tensor]]:
    """What the live ZeRO optimizer holds, by name."""
    optimizer = engine.optimizer
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    if engine.zero_optimization_stage() == 3:
        return {
            name: {slot: safe_get_full_optimizer_state(parameter, slot) for slot in ("exp_avg", "exp_avg_sq")}
            | {"master": safe_get_full_fp32_param(parameter)}
            for parameter, name in names.items()
            if parameter.requires_grad
        }
    found: dict[str, dict[str, torch.Tensor]] = {}
    for flat, parameters in zip(optimizer.single_partition_of_fp32_groups, optimizer.round_robin_bit16_groups):
        state = {**optimizer.optimizer.state[flat], "master": flat.detach()}
        for slot in ("exp_avg", "exp_avg_sq", "master"):
            parts = [torch.empty_like(flat) for _ in range(WORLD)]
            dist.all_gather(parts, state[slot].contiguous())
            whole, at = torch.cat(parts), 0
            for parameter in parameters:
                found.setdefault(names[parameter], {})[slot] = whole[at : at + parameter.numel()].view(parameter.shape)
                at += parameter.numel()
    return found


def live_truth(engine: Any, plain: dict[str, Any], numbers: dict[str, dict[str, torch.Tensor]]) -> dict[str, Any]:
    """The plain optimizer's truth with the live numbers' digests, where they agree to rounding."""
    rows = {}
    live = live_numbers(engine)
    assert set(live) == set(plain)
    for name, slots in live.items():
        for slot, value in slots.items():
            torch.testing.assert_close(value, numbers[name][slot], rtol=1e-4, atol=1e-6 * numbers[name][slot].abs().max().item())
        digests = {slot: digest(value) for slot, value in slots.items()}
        rows[name] = {**plain[name], "master": digests.pop("master"), "slots": digests}
    return rows


def reference_bfloat16() -> dict[str, Any]:
    """bfloat16 weights and gradients, float32 masters and moments."""
    master = Tiny()
    low = Tiny().to(torch.bfloat16)
    with torch.no_grad():
        for parameter, source in zip(master.parameters(), low.parameters()):
            parameter.copy_(source)
    optimizer = adamw(master)
    for step in range(3):
        low(batch(WIDTH, step).bfloat16()).float().square().mean().backward()
        for parameter, source in zip(master.parameters(), low.parameters()):
            if parameter.requires_grad:
                parameter.grad = source.grad.float()
                source.grad = None
        optimizer.step()
        with torch.no_grad():
            for parameter, source in zip(master.parameters(), low.parameters()):
                source.copy_(parameter)
    return plain_truth(master, optimizer)


def stage(number: int, **more: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": number, **more}}


BF16 = {"bf16": {"enabled": True}}
CASES: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "stage1": (stage(1), torch.float32),
    "stage2": (stage(2), torch.float32),
    "stage2_elastic": (stage(2, elastic_checkpoint=True), torch.float32),
    "stage2_round_robin": (stage(2, round_robin_gradients=True), torch.float32),
    "stage2_bf16": (stage(2) | BF16, torch.bfloat16),
    "bf16_optimizer": (stage(1) | BF16 | {"data_types": {"grad_accum_dtype": "fp32"}}, torch.bfloat16),
    "stage3": (stage(3, stage3_param_persistence_threshold=0), torch.float32),
    "stage3_persistent": (stage(3, stage3_param_persistence_threshold=100000), torch.float32),
    "stage3_sub_groups": (stage(3, sub_group_size=60, stage3_param_persistence_threshold=0), torch.float32),
    "stage0": ({}, torch.float32),
}


def main(rank: int, out: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ["MAKE_PORT"], RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD))
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    (plain, numbers), low = reference(), reference_bfloat16()
    for name, (config, dtype) in CASES.items():
        engine = engine_for(config)
        train_engine(engine, dtype)
        engine.save_checkpoint(str(Path(out) / name), exclude_frozen_parameters=name == "stage3_persistent")
        rows = low if dtype is torch.bfloat16 else plain if name == "stage0" else live_truth(engine, plain, numbers)
        if rank == 0:
            write_truth(Path(out) / name, rows)
        dist.barrier()
    dist.destroy_process_group()


def universal(out: Path) -> None:
    """Convert with DeepSpeed's own program."""
    from deepspeed.checkpoint import ds_to_universal

    for name in ("stage2", "stage2_round_robin", "stage3"):
        target = out / f"{name}_universal" / "global_step3_universal"
        (source,) = (out / name).glob("global_step*")
        arguments = ["--input_folder", str(source), "--output_folder", str(target)]
        arguments += ["--num_extract_workers", "1", "--num_merge_workers", "1", "--inject_missing_state"]
        sys.argv = ["ds_to_universal", *arguments]
        ds_to_universal.main(ds_to_universal.parse_arguments())
        (target.parent / "truth.json").write_bytes((out / name / "truth.json").read_bytes())


if __name__ == "__main__":
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ["MAKE_PORT"] = str(probe.getsockname()[1])
    out = sys.argv[1]
    Path(out).mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.spawn(main, args=(out,), nprocs=WORLD)
    universal(Path(out))
