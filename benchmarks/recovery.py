"""What it costs to name every position of a large adapter from the numbers alone: time, memory, and whether the names are right.

    python benchmarks/recovery.py                 # LoRA of rank 16 on every linear layer of a 70B Llama: 560 pairs, 2.5 GB; deleted afterwards
    python benchmarks/recovery.py --layers 10     # an eighth of it

Each pair is trained by torch's AdamW for six steps on gradients of its product, so that balance and displacement hold as they do in a run;
then the positions are shuffled, and nothing but the adapter's own numbers and names is left to go by.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HIDDEN, KEYS, INNER = 8192, 1024, 28672
MODULES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, KEYS),
    "self_attn.v_proj": (HIDDEN, KEYS),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INNER),
    "mlp.up_proj": (HIDDEN, INNER),
    "mlp.down_proj": (INNER, HIDDEN),
}
"""Module -> (in, out) of Llama 70B."""
STEPS = 6


def make(folder: Path, layers: int, rank: int) -> None:
    """Write a shuffled optimizer.pt, its adapter, and truth.json, the adapter's key of every position."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights: dict[str, torch.Tensor] = {}
    states = []
    for layer in range(layers):
        for module, (into, out) in MODULES.items():
            a, b = torch.nn.Parameter(torch.randn(rank, into) / into**0.5), torch.nn.Parameter(torch.zeros(out, rank))
            optimizer = torch.optim.AdamW([a, b], lr=1e-3)
            left, right = torch.randn(out, 4), torch.randn(4, into)
            for _ in range(STEPS):
                far, near = left + torch.randn_like(left), right + torch.randn_like(right)  # G = far @ near, the gradient of W
                a.grad, b.grad = 1e-4 * (b.detach().T @ far) @ near, 1e-4 * far @ (near @ a.detach().T)
                optimizer.step()
            stem = f"base_model.model.model.layers.{layer}.{module}.lora_"
            weights |= {f"{stem}A.weight": a.detach(), f"{stem}B.weight": b.detach()}
            states += [optimizer.state[a], optimizer.state[b]]
    order = np.random.default_rng(0).permutation(len(states))
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False, "params": list(range(len(states)))}
    torch.save({"state": {new: states[old] for new, old in enumerate(order)}, "param_groups": [group]}, folder / "optimizer.pt")
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank}))
    names = list(weights)
    (folder / "truth.json").write_text(json.dumps([names[old] for old in order]))


def find(folder: Path) -> None:
    """Recover the order, and say how it went."""
    from ostate import read as formats
    from ostate.evidence.recover import recover
    from ostate.read import adapters

    truth = json.loads((folder / "truth.json").read_text())
    raw, adapter = formats.read(str(folder / "optimizer.pt")), adapters.read_adapter(str(folder))
    started, clock = time.process_time(), time.monotonic()
    found = recover(raw, adapter)
    spent, waited = time.process_time() - started, time.monotonic() - clock
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wrong = sum(found.order[position] != truth[position] for position in found.proven)
    print(
        f"{len(truth)} positions: {len(found.proven)} proven, {wrong} of them wrong, tests {', '.join(found.used)};"
        f" {spent:.0f} s of processor, {waited:.0f} s in all, peak {peak:,.0f} MB",
        flush=True,
    )


def main() -> None:
    """Make the checkpoint in one process and recover it in another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--folder", help="where to make it; default: a temporary folder")
    parser.add_argument("--step", choices=["make", "find"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        make(Path(options.folder), options.layers, options.rank) if options.step == "make" else find(Path(options.folder))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for step in ("make", "find"):
            words = [os.path.abspath(__file__), "--layers", str(options.layers), "--rank", str(options.rank), "--folder", folder, "--step", step]
            subprocess.run([sys.executable, *words], check=True)


if __name__ == "__main__":
    main()
