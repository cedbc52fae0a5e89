"""A mixture of experts with LoRA on every expert: what each command costs, and how cost grows with the number of modules.

    python benchmarks/experts.py                  # 48 layers of 128 experts: 18,432 modules, 36,864 positions; 15 GB of disk
    python benchmarks/experts.py --layers 4       # a twelfth of it
    python benchmarks/experts.py --curve          # 114 to 36,864 narrow modules; writes docs/img/experts.svg and docs/experts.json

Rank 8, 3.3 GB of moments; the widths are those of Qwen3-30B-A3B.

The numbers are made by numpy as a run would leave them: gradients of a product, a few steps of Adam from
B = 0, each module with a start of its own, so that balance and displacement hold for true pairs and for no others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import measure
import numpy as np
from measure import OSTATE, Cost, Task

RANK, STEPS, RATE = 8, 4, 2e-4
DOCS = Path(__file__).resolve().parent.parent / "docs"
LIMITS = {"inspect": (2.5, None), "repair": (90, 1024)}
"""Task -> (CPU seconds, MB), on the whole of it."""
CURVE = ((1, 38), (3, 128), (12, 128), (48, 128), (96, 128))
"""(layers, experts)."""


def stems(layers: int, experts: int) -> Iterator[tuple[str, bool]]:
    """Yield (stem, whether it leads back to the hidden width), in the order of the model."""
    for layer in range(layers):
        for expert in range(experts):
            for module in ("gate_proj", "up_proj", "down_proj"):
                yield f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{module}", module == "down_proj"


def trained(rng: np.random.Generator, into: int, out: int) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return weight, first and second moment of both factors after STEPS steps of Adam on G = left @ right, float32."""
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    a, b = normal(RANK, into) / np.float32(into**0.5), np.zeros((out, RANK), np.float32)
    left, right = normal(out, 2), 1e-4 * normal(2, into)
    state = [(weight, np.zeros_like(weight), np.zeros_like(weight)) for weight in (a, b)]
    for step in range(1, STEPS + 1):
        mixed = left @ (np.eye(2, dtype=np.float32) + np.float32(0.5) * normal(2, 2))
        slopes = (b.T @ mixed) @ right, mixed @ (right @ a.T)
        for (weight, m, v), slope in zip(state, slopes):
            m += np.float32(0.1) * (slope - m)
            v += np.float32(0.001) * (slope * slope - v)
            scale, below = np.float32(RATE / (1 - 0.9**step)), np.float32(1 / (1 - 0.999**step))
            weight -= scale * m / (np.sqrt(v * below) + np.float32(1e-8))
    return {"lora_A": state[0], "lora_B": state[1]}


def make(folder: Path, options: argparse.Namespace) -> None:
    """Write optimizer.pt with recorded names, the adapter and its configuration."""
    import torch
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}
    state: dict[int, dict[str, torch.Tensor]] = {}
    names = []
    for stem, down in stems(options.layers, options.experts):
        into, out = (options.inner, options.hidden) if down else (options.hidden, options.inner)
        for factor, (weight, m, v) in trained(rng, into, out).items():
            weights[f"{stem}.{factor}.weight"] = weight
            names.append(f"{stem}.{factor}.default.weight")
            state[len(state)] = {"step": torch.tensor(float(STEPS)), "exp_avg": torch.from_numpy(m), "exp_avg_sq": torch.from_numpy(v)}
    group = {"lr": RATE, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "params": list(range(len(names)))}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state": state, "param_groups": [group | {"param_names": names}]}, folder / "optimizer.pt")
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "target_modules": ["gate_proj", "up_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))


@contextmanager
def checkpoint(layers: int, experts: int, hidden: int, inner: int) -> Iterator[Path]:
    """Make a checkpoint in a temporary folder, in a process of its own; all of the folder is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="ostate-bench-") as folder:
        place = Path(folder) / "runs" / "checkpoint-4"
        sizes = {"--layers": layers, "--experts": experts, "--hidden": hidden, "--inner": inner, "--make": place}
        subprocess.run([sys.executable, os.path.abspath(__file__), *(str(word) for pair in sizes.items() for word in pair)], check=True)
        yield place


def commands(place: Path) -> Iterator[Task]:
    """Yield what is measured, in an order in which each finds what the ones before it wrote."""
    out, every = place.parent.parent / "named.safetensors", place.parent / "checkpoint-*"
    batch, back = out.with_name("batch"), out.with_name("back.pt")
    yield Task("inspect", [*OSTATE, "-q", "inspect", str(place)], statuses=(0, 1))
    yield Task("verify", [*OSTATE, "-q", "verify", str(place)])
    yield Task("repair", [*OSTATE, "-q", "repair", str(place), "-o", str(out), "--force"])
    written = out if out.exists() else Path(f"{out}.index.json")  # several files, where a header would grow too large
    yield Task("validate", [*OSTATE, "-q", "validate", str(written)])
    yield Task("export --to torch", [*OSTATE, "-q", "export", str(written), "--to", "torch", "-o", str(back)], measure.forget(back))
    yield Task("repair --batch", [*OSTATE, "-q", "repair", "--batch", str(every), "-o", str(batch)], measure.forget(batch))


def whole(options: argparse.Namespace) -> int:
    """Measure every command once; return 1 where a limit is missed."""
    full = (options.layers, options.experts) == (48, 128)
    missed = 0
    print(f"| {3 * options.layers * options.experts} modules | CPU s | wall s | peak MB | limit |\n|---|---|---|---|---|", flush=True)
    with checkpoint(options.layers, options.experts, options.hidden, options.inner) as place:
        for task in commands(place):
            if options.only and task.name not in options.only:
                continue
            cost = measure.run(task)
            cpu, peak = LIMITS.get(task.name, (None, None)) if full else (None, None)
            over = (cpu is not None and cost.cpu > cpu) or (peak is not None and cost.peak > peak)
            missed |= over
            limit = "" if cpu is None else f"{cpu} s{'' if peak is None else f', {peak} MB'}: {'MISSED' if over else 'met'}"
            print(f"| {task.name} | {cost.cpu:.1f} | {cost.wall:.1f} | {cost.peak:.0f} | {limit} |", flush=True)
    return int(missed)


def curve() -> None:
    """Measure inspect, verify and repair against the number of modules."""
    rows: dict[str, list[dict[str, float]]] = {"inspect": [], "verify": [], "repair": []}
    for layers, experts in CURVE:
        with checkpoint(layers, experts, 256, 128) as place:
            for task in commands(place):
                if task.name in rows:
                    cost: Cost = measure.run(task)
                    rows[task.name].append({"modules": 3 * layers * experts, "cpu": round(cost.cpu, 2), "peak": round(cost.peak)})
                    print(task.name, rows[task.name][-1], flush=True)
    (DOCS / "experts.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot(rows)


def plot(rows: dict[str, list[dict[str, float]]]) -> None:
    """Draw processor seconds and MB against modules."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "ostate"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    for axis, what, title in zip(axes, ("cpu", "peak"), ("CPU seconds", "peak MB")):
        for name, measured in rows.items():
            axis.plot([row["modules"] for row in measured], [row[what] for row in measured], "o-", label=name)
        axis.set(xscale="log", yscale="log", xlabel="LoRA modules", title=title)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(DOCS / "img" / "experts.svg", metadata={"Date": None})


def main() -> int:
    """Make, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=768)
    parser.add_argument("--only", nargs="*", help="rows to measure, such as inspect repair")
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--make", type=Path, help="only write a checkpoint to this folder")
    options = parser.parse_args()
    if options.make:
        make(options.make, options)
    elif options.curve:
        curve()
    else:
        return whole(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
