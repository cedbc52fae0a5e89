"""A real AdamW state of a LoRA on every linear layer of a Llama, made here: torch's own optimizer, PEFT's names and order, gradients of B A.

    python benchmarks/made.py FOLDER --rank 64 --layers 32 --named --anonymous

writes `optimizer.pt` (with `param_names`) and `anonymous/optimizer.pt` (without), `adapter_model.safetensors`, `adapter_config.json` and
`base/config.json`. With `--low-rank 1` the moments are of low rank too, as some data leave them.
Rank 64 and 32 layers are Llama 7B: 448 tensors, 1.28 GB of moments.

Used by the other scripts here, each in a process of its own.
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

MODULES = {
    "self_attn.q_proj": ("hidden", "hidden"),
    "self_attn.k_proj": ("hidden", "hidden"),
    "self_attn.v_proj": ("hidden", "hidden"),
    "self_attn.o_proj": ("hidden", "hidden"),
    "mlp.gate_proj": ("hidden", "inner"),
    "mlp.up_proj": ("hidden", "inner"),
    "mlp.down_proj": ("inner", "hidden"),
}
"""Module -> (in, out), in the order of the model."""
STEPS = 6


def shapes(layers: int, rank: int, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
    """Yield (stem, shape of lora_A, shape of lora_B)."""
    width = {"hidden": hidden, "inner": inner}
    for layer in range(layers):
        for module, (into, out) in MODULES.items():
            yield f"base_model.model.model.layers.{layer}.{module}", (rank, width[into]), (width[out], rank)


def make(folder: Path, options: argparse.Namespace) -> None:
    """Train one pair at a time, so that nothing but the state and the adapter is held in memory."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    torch.manual_seed(0)
    parameters: dict[str, torch.nn.Parameter] = {}
    pairs = []
    for stem, shape_a, shape_b in shapes(options.layers, options.rank, options.hidden, options.inner):
        a = parameters[f"{stem}.lora_A.default.weight"] = torch.nn.Parameter(torch.randn(shape_a) / shape_a[1] ** 0.5)
        b = parameters[f"{stem}.lora_B.default.weight"] = torch.nn.Parameter(torch.zeros(shape_b))
        pairs.append((a, b))
    optimizer = torch.optim.AdamW(list(parameters.items()), lr=1e-3)
    for a, b in pairs:
        left, right = torch.randn(b.shape[0], 4), torch.randn(4, a.shape[1])
        for _ in range(STEPS):
            if options.low_rank:
                far, near = left[:, : options.low_rank] * (1 + 0.5 * torch.randn(())), right[: options.low_rank]
            else:
                far, near = left + torch.randn_like(left), right + torch.randn_like(right)  # G = far @ near, the gradient of W
            a.grad, b.grad = 1e-4 * (b.detach().T @ far) @ near, 1e-4 * far @ (near @ a.detach().T)
            optimizer.step()
        a.grad = b.grad = None
    folder.mkdir(parents=True, exist_ok=True)
    state = optimizer.state_dict()
    if options.bad:
        state["state"][len(parameters) // 2]["exp_avg_sq"][0, :7] = float("nan")
    if options.named:
        torch.save(state, folder / "optimizer.pt")
    if options.anonymous:
        for group in state["param_groups"]:
            group.pop("param_names")
        (folder / "anonymous").mkdir()
        torch.save(state, folder / "anonymous" / "optimizer.pt")
    weights = {name.replace(".default", ""): value.detach() for name, value in parameters.items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    _configurations(folder, options)


def _configurations(folder: Path, options: argparse.Namespace) -> None:
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": options.rank,
        "lora_alpha": options.rank,
        "target_modules": [module.rpartition(".")[2] for module in MODULES],
        "base_model_name_or_path": "base",
    }
    base = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": options.hidden,
        "intermediate_size": options.inner,
        "num_hidden_layers": options.layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    (folder / "base").mkdir(exist_ok=True)
    (folder / "base" / "config.json").write_text(json.dumps(base))


@contextmanager
def checkpoint(*, rank: int = 64, layers: int = 32, hidden: int = 4096, inner: int = 11008, flags: tuple[str, ...] = ("--named",)) -> Iterator[Path]:
    """Make a checkpoint in a temporary folder, in a process of its own; all of the folder is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="ostate-bench-") as folder:
        place = Path(folder) / "checkpoint"
        sizes = {"--rank": rank, "--layers": layers, "--hidden": hidden, "--inner": inner}
        arguments = [text for flag, value in sizes.items() for text in (flag, str(value))]
        subprocess.run([sys.executable, os.path.abspath(__file__), str(place), *arguments, *flags], check=True)
        yield place


def main() -> None:
    """Make one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_argument("--named", action="store_true", help="with `param_names`")
    parser.add_argument("--anonymous", action="store_true", help="without, in a folder of its own")
    parser.add_argument("--low-rank", type=int, default=0, choices=range(5), help="gradients of so few directions, the same ones at every step")
    parser.add_argument("--bad", action="store_true", help="with seven NaN")
    options = parser.parse_args()
    make(options.folder, options)


if __name__ == "__main__":
    main()
