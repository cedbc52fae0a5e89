"""Write every DeepSpeed ZeRO layout with two gloo processes on the CPU: `DS_ACCELERATOR=cpu python -m tests.read.make_zero OUT`.

Truth is the live optimizer's own numbers, under names that a plain torch AdamW on the same batches proves: that one owes nothing to
DeepSpeed, but sums in another order, so it agrees to a few last bits only. In bfloat16 it agrees bit for bit and is itself the truth.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from tests import ranks

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


def live_truth(
    engine: Any, plain: dict[str, Any], numbers: dict[str, dict[str, torch.Tensor]], rounding: float = 1e-4, least: float = 1e-6
) -> dict[str, Any]:
    """The plain optimizer's truth with the live numbers' digests, where they agree to rounding: relative, and of the largest."""
    rows = {}
    live = live_numbers(engine)
    assert set(live) == set(plain)
    for name, slots in live.items():
        for slot, value in slots.items():
            torch.testing.assert_close(value, numbers[name][slot], rtol=rounding, atol=least * numbers[name][slot].abs().max().item())
        digests = {f"{slot}_sha256": digest(value) for slot, value in slots.items()}
        rows[name] = {**plain[name], "master": digests.pop("master_sha256"), **digests}
    return rows


def reference_low(dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """As `reference`, with weights and gradients in 16 bits, master weights and moments in float32."""
    master = Tiny()
    low = Tiny().to(dtype)
    with torch.no_grad():
        for parameter, source in zip(master.parameters(), low.parameters()):
            parameter.copy_(source)
    optimizer = adamw(master)
    for step in range(3):
        low(batch(WIDTH, step).to(dtype)).float().square().mean().backward()
        for parameter, source in zip(master.parameters(), low.parameters()):
            if parameter.requires_grad:
                parameter.grad = source.grad.float()
                source.grad = None
        optimizer.step()
        with torch.no_grad():
            for parameter, source in zip(master.parameters(), low.parameters()):
                source.copy_(parameter)
    names = {name: parameter for name, parameter in master.named_parameters() if parameter.requires_grad}
    return plain_truth(master, optimizer), {name: {**optimizer.state[p], "master": p.detach()} for name, p in names.items()}


def stage(number: int, **more: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": number, **more}}


def stage0_truth(engine: Any, plain: dict[str, Any]) -> dict[str, Any]:
    """The plain optimizer's names and shapes with the numbers of the optimizer that DeepSpeed wraps, by the order it was given them.

    DeepSpeed begins with a step of zero gradients in 16 bits, so the step is one more and the moments are not the plain optimizer's.
    """
    rows = {}
    order = two_group_names(engine.module)
    inner = engine.optimizer.optimizer
    for name, master in zip(order, (p for group in inner.param_groups for p in group["params"])):
        state = dict(inner.state[master])
        step = float(state.pop("step"))
        rows[name] = {**plain[name], "step": step, "master": digest(master), **{f"{slot}_sha256": digest(value) for slot, value in state.items()}}
    return rows


def two_group_names(model: Any) -> list[str]:
    """The order in which `make_model.two_groups` hands parameters over."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [name for name in names if "lora_A" in name] + [name for name in names if "lora_A" not in name]


BF16 = {"bf16": {"enabled": True}}
FP16 = {"fp16": {"enabled": True, "initial_scale_power": 8}}
"""With a dynamic loss scaler, which each file holds as an object."""
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
    "stage1_elastic": (stage(1, elastic_checkpoint=True), torch.float32),
    "stage2_fp16": (stage(2) | FP16, torch.float16),
    "stage3_fp16": (stage(3, stage3_param_persistence_threshold=0) | FP16, torch.float16),
    "stage0": ({}, torch.float32),
    "stage0_bf16": (BF16, torch.bfloat16),
}


def main(rank: int, out: str) -> None:
    # A shared-memory speed-up, which would be compiled for half a minute; gloo does without.
    import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    deepspeed.init_distributed("gloo")
    accelerator = deepspeed.get_accelerator()
    accelerator.is_fp16_supported = lambda: True  # DeepSpeed lists float16 for no CPU; torch computes in it
    accelerator.supported_dtypes = lambda: [torch.float32, torch.float16, torch.bfloat16]
    references = {torch.float32: reference(), torch.bfloat16: reference_low(torch.bfloat16), torch.float16: reference_low(torch.float16)}
    for name, (config, dtype) in CASES.items():
        plain, numbers = references[dtype]
        engine = engine_for(config)
        train_engine(engine, dtype)
        engine.save_checkpoint(str(Path(out) / name), exclude_frozen_parameters=name == "stage3_persistent")
        if name == "stage0_bf16":
            rows = stage0_truth(engine, plain)
        elif name == "stage0" or dtype is torch.bfloat16:
            rows = plain
        else:
            rows = live_truth(engine, plain, numbers, *((0.05, 0.02) if dtype is torch.float16 else ()))
        if rank == 0:
            write_truth(Path(out) / name, rows)
        dist.barrier()


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
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    ranks.run(WORLD, main, sys.argv[1])
    universal(Path(sys.argv[1]))
