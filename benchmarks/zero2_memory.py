"""Memory of `ostate repair` on a large DeepSpeed ZeRO-2 checkpoint, against the size of the checkpoint.

    python benchmarks/zero2_memory.py                  # 5 GB, about 12 GB of disk for a few minutes; deleted afterwards
    python benchmarks/zero2_memory.py --rank 16        # a tenth of it

The folder is what two processes of ZeRO-2 write for LoRA on every linear layer of a 32-layer, 4096-wide Llama: one flat run a group and process
in `*_optim_states.pt`, names and shapes in `mp_rank_00_model_states.pt`, bfloat16 weights beside. The numbers obey the law of LoRA gradients
(both factors' gradients come from one gradient of the product), so the evidence has something to prove.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

LIMIT = 150
"""MB, as resident set size at its peak."""
WORLD = 2
SHAPES = {"self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (4096, 4096), "self_attn.v_proj": (4096, 4096), "self_attn.o_proj": (4096, 4096)}
SHAPES |= {"mlp.gate_proj": (4096, 11008), "mlp.up_proj": (4096, 11008), "mlp.down_proj": (11008, 4096)}
"""Module -> (in, out) of Llama 7B."""


def make(folder: Path, rank: int, layers: int) -> None:
    """Write the checkpoint, one process's file at a time."""
    import torch
    from safetensors.torch import save_file

    shapes: OrderedDict[str, torch.Size] = OrderedDict()
    for layer in range(layers):
        for module, (width_in, width_out) in SHAPES.items():
            stem = f"base_model.model.model.layers.{layer}.{module}"
            shapes[f"{stem}.lora_A.default.weight"] = torch.Size([rank, width_in])
            shapes[f"{stem}.lora_B.default.weight"] = torch.Size([width_out, rank])
    used = sum(shape.numel() for shape in shapes.values())
    share = -(-used // (2 * WORLD)) * 2
    flat = {slot: torch.zeros(share * WORLD) for slot in ("exp_avg", "exp_avg_sq", "fp32")}
    weights: OrderedDict[str, torch.Tensor] = OrderedDict()
    at = 0
    generator = torch.Generator().manual_seed(0)
    names = list(shapes)
    for first, second in zip(names[::2], names[1::2]):
        for name, values in zip((first, second), pair(shapes[first], shapes[second], generator)):
            count = shapes[name].numel()
            for slot, value in values.items():
                flat[slot][at : at + count] = value.reshape(-1)
            weights[name] = values["fp32"].to(torch.bfloat16)
            at += count
    step_folder = folder / "global_step500"
    step_folder.mkdir(parents=True)
    (folder / "latest").write_text("global_step500")
    group = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "params": [0]}
    config = {"zero_optimization": {"stage": 2}}
    for process in range(WORLD):
        run = slice(process * share, (process + 1) * share)
        last = process == WORLD - 1
        padding = share * WORLD - used if last else 0
        state = {"step": torch.tensor(500.0), "exp_avg": flat["exp_avg"][run].clone(), "exp_avg_sq": flat["exp_avg_sq"][run].clone()}
        optimizer = {
            "base_optimizer_state": {"state": {0: state}, "param_groups": [group]},
            "single_partition_of_fp32_groups": [flat["fp32"][run][: share - padding].clone()],
            "zero_stage": 2,
            "group_paddings": [padding],
            "partition_count": [WORLD],
            "ds_version": "0.19.8",
        }
        path = step_folder / f"zero_pp_rank_{process}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": optimizer, "ds_config": config, "ds_version": "0.19.8"}, path)
    model = {"module": weights, "param_shapes": [shapes], "ds_config": config, "ds_version": "0.19.8", "global_steps": 500}
    torch.save(model, step_folder / "mp_rank_00_model_states.pt")
    save_file({name.replace(".default", ""): value for name, value in weights.items()}, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": [name.rpartition(".")[2] for name in SHAPES],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def pair(shape_a, shape_b, generator):
    """Weights and moments of lora_A and lora_B, from one gradient G of the product: dA = B^T G, dB = G A^T."""
    import torch

    rank, width_in = shape_a
    width_out = shape_b[0]
    left, right = torch.randn(width_out, 4, generator=generator), torch.randn(4, width_in, generator=generator)
    a = torch.randn(rank, width_in, generator=generator) / width_in**0.5
    moment_b = 1e-4 * left @ (right @ a.T)
    b = -1e-2 * moment_b / (moment_b.abs() + 1e-12) * torch.rand(shape_b, generator=generator)
    moment_a = 1e-4 * (b.T @ left) @ right
    return (
        {"exp_avg": moment_a, "exp_avg_sq": moment_a.square() + 1e-14, "fp32": a},
        {"exp_avg": moment_b, "exp_avg_sq": moment_b.square() + 1e-14, "fp32": b},
    )


def measured(command: list[str]) -> tuple[int, float, float]:
    """Return exit status, seconds and peak MB. This process stays small: a child's peak counts from the size of its parent."""
    started = time.monotonic()
    child = subprocess.Popen(command)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, time.monotonic() - started, usage.ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=164, help="LoRA rank; 164 makes 5 GB")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--folder", help="where to make it; default: a temporary folder")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(Path(options.make), options.rank, options.layers)
        return 0
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        checkpoint, out = folder / "checkpoint", folder / "lora.ostate.safetensors"
        subprocess.run([sys.executable, __file__, "--make", checkpoint, "--rank", str(options.rank), "--layers", str(options.layers)], check=True)
        size = sum(path.stat().st_size for path in checkpoint.glob("*/*_optim_states.pt")) / 1e6
        worst = 0.0
        commands = {
            "inspect": ["inspect", checkpoint],
            "repair --no-evidence": ["repair", checkpoint, "--no-evidence", "--force", "-o", out],
            "repair": ["repair", checkpoint, "--force", "-o", out],
        }
        for name, arguments in commands.items():
            status, seconds, peak = measured([sys.executable, "-m", "ostate", "-q", *map(str, arguments)])
            print(f"{name}: {size:,.0f} MB of optimizer files, {seconds:.1f} s, peak {peak:.0f} MB (limit {LIMIT}), exit {status}", flush=True)
            worst = max(worst, peak)
            if status not in {0, 1}:
                return status
        return 0 if worst < LIMIT else 1
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
