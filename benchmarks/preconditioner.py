"""How fast is the preconditioner? Against a plain loop, torch's own AdamW steps and a device copy, all in this one run.

    python benchmarks/preconditioner.py [--device cuda] [--layers 32] [--old TREE]

The parameters are those of a LoRA of rank 16 on every linear layer of a Llama of hidden size 4096: 448 tensors, 40.0 M elements, float32.
`--old TREE` times the ostate of another checkout beside this one's, on the same machine, and says whether both give the same bits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, os.environ.get("OSTATE_TREE") or str(Path(__file__).resolve().parent.parent))

from benchmarks.seed_loop import seed_apply
from ostate.probe import AdamPreconditioner


def shapes(layers: int, hidden: int = 4096, inner: int = 11008, r: int = 16) -> dict[str, tuple[int, int]]:
    """Name -> shape."""
    modules = {"q": (hidden, hidden), "k": (hidden, hidden), "v": (hidden, hidden), "o": (hidden, hidden)}
    modules |= {"gate": (hidden, inner), "up": (hidden, inner), "down": (inner, hidden)}
    return {
        f"base_model.model.model.layers.{layer}.{module}_proj.lora_{factor}.default.weight": shape
        for layer in range(layers)
        for module, (into, out) in modules.items()
        for factor, shape in (("A", (r, into)), ("B", (out, r)))
    }


def timed(work: Callable[[], object], device: str, runs: int) -> float:
    """Milliseconds, median of `runs` after two warm-ups."""
    for _ in range(2):
        work()
    times = []
    for _ in range(runs):
        if device == "cuda":
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            work()
            stop.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(stop))
        else:
            begin = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def optimizer_of(named: dict[str, torch.nn.Parameter], **flags: bool) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(list(named.items()), lr=1e-5, **flags)
    optimizer.step()
    generator = torch.Generator(next(iter(named.values())).device).manual_seed(1)
    for state in optimizer.state.values():
        state["exp_avg_sq"].uniform_(1e-14, 1e-12, generator=generator)
        state["step"].fill_(500.0)
    return optimizer


def digest(tensors: list[torch.Tensor]) -> str:
    """Return a hash of every bit."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def captured(work: Callable[[], dict[torch.Tensor, torch.Tensor]]) -> Callable[[], object]:
    """Return the replay of a CUDA graph of `work`, whose results must be those of `work` to the last bit."""
    want = work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = work()
    graph.replay()
    assert all(torch.equal(got[key], want[key]) for key in want)
    return graph.replay


def measure(device: str, layers: int, runs: int) -> dict[str, Any]:
    logging.disable(logging.CRITICAL)
    torch.manual_seed(0)
    named = {name: torch.nn.Parameter(torch.randn(shape, device=device)) for name, shape in shapes(layers).items()}
    parameters = list(named.values())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 1e-6
    numel = sum(parameter.numel() for parameter in parameters)
    kinds: dict[str, dict[str, bool]] = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
    steps = {name: optimizer_of(named, **flags) for name, flags in kinds.items()}
    pre = AdamPreconditioner(steps["loop"])
    exact = AdamPreconditioner(steps["loop"], precision="float64")
    live = AdamPreconditioner(steps["fused"])
    model = torch.nn.ParameterList(parameters)
    gradients = {parameter: parameter.grad for parameter in parameters}
    by_name = dict(zip(named, gradients.values()))
    half = {parameter: gradient.to(torch.bfloat16) for parameter, gradient in gradients.items()}
    (x,), (g,) = pre.layout.flatten(gradients), pre.layout.flatten({parameter: torch.randn_like(parameter) for parameter in parameters})
    out, spare = torch.empty_like(x), torch.empty_like(x)
    bits = digest([*pre.scale, *pre.apply_all(gradients).values(), *pre.apply_all(half).values(), *exact.apply_all(gradients).values()])
    work: dict[str, tuple[Callable[[], object], float]] = {
        "device copy": (lambda: spare.copy_(x), 2),
        "read three buffers (sum of each)": (lambda: (x.sum(), g.sum(), pre.scale[0].sum()), 3),
        "AdamW step, loop": (steps["loop"].step, 0),
        "AdamW step, foreach": (steps["foreach"].step, 0),
        "AdamW step, fused": (steps["fused"].step, 0),
        "per-parameter loop with guards": (lambda: [seed_apply(steps["foreach"], p, p.grad) for p in parameters], 0),
        "apply, flat": (lambda: pre.apply_all(x, out=out), 3),
        "apply, flat, float64 inside": (lambda: exact.apply_all(x, out=out), 0),
        "apply, dict of gradients": (lambda: pre.apply_all(gradients), 0),
        "apply, dict of gradients by name": (lambda: pre.apply_all(by_name), 0),
        "apply, dict of bfloat16 gradients": (lambda: pre.apply_all(half), 0),
        "apply, one by one": (lambda: [pre.apply(p, p.grad) for p in parameters], 0),
        "dot, <x, P g>": (lambda: pre.dot(x, g), 3),
        "dot, dicts of gradients": (lambda: pre.dot(gradients, gradients), 0),
        "dot, float64 P": (lambda: exact.dot(x, g), 0),
        "refresh (read the moments again)": (pre.refresh, 0),
        "refresh, steps counted on the device": (live.refresh, 0),
    }
    if hasattr(pre.layout, "gradients_of"):
        work["apply, .grad of a model"] = (lambda: pre.apply_all(model), 0)
        if device == "cuda":
            work["apply, dict of gradients, CUDA graph"] = (captured(lambda: pre.apply_all(gradients)), 3)
    for optimizer in steps.values():
        optimizer.param_groups[0]["lr"] = 0.0
    found = {}
    for name, (call, _) in work.items():
        pre._stale = exact._stale = live._stale = False  # the timed steps move the moments; what is timed here is the use of a diagonal
        found[name] = timed(call, device, 5 if "loop" in name or "refresh" in name else runs)
    rates = {name: passes * 4 * numel / found[name] / 1e6 for name, (_, passes) in work.items() if passes}
    assert torch.isfinite(seed_apply(steps["foreach"], parameters[0], parameters[0].grad)).all()
    where = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"ms": found, "rates": rates, "bits": bits, "numel": numel, "tensors": len(parameters), "torch": torch.__version__, "device": where}


def ratios_of(ms: dict[str, float]) -> dict[str, float]:
    fused = ms["AdamW step, fused"]
    found = {
        "apply bandwidth / device copy bandwidth": 1.5 * ms["device copy"] / ms["apply, flat"],
        "apply / fused AdamW step": ms["apply, flat"] / fused,
        "apply, float64 inside / fused AdamW step": ms["apply, flat, float64 inside"] / fused,
        "apply, dict of gradients / fused AdamW step": ms["apply, dict of gradients"] / fused,
        "apply, .grad of a model / fused AdamW step": ms.get("apply, .grad of a model", float("nan")) / fused,
        "apply, one by one / fused AdamW step": ms["apply, one by one"] / fused,
        "per-parameter loop / apply": ms["per-parameter loop with guards"] / ms["apply, flat"],
        "dot / reading its inputs": ms["dot, <x, P g>"] / ms["read three buffers (sum of each)"],
        "dot / its inputs at copy bandwidth": ms["dot, <x, P g>"] / (1.5 * ms["device copy"]),
        "refresh / fused AdamW step": ms["refresh (read the moments again)"] / fused,
    }
    return {name: value for name, value in found.items() if value == value}


def of_tree(tree: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the ostate of another checkout, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        arguments = ["--device", options.device, "--layers", str(options.layers), "--runs", str(options.runs), "--json", str(path)]
        subprocess.run([sys.executable, __file__, *arguments], env={**os.environ, "OSTATE_TREE": tree}, check=True, stdout=subprocess.DEVNULL)
        return json.loads(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--old", help="another checkout, to be timed in the same run")
    parser.add_argument("--json", help="where to write the numbers")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    columns = {} if options.old is None else {"old": of_tree(options.old, options)}
    columns["new" if columns else ""] = new = measure(options.device, options.layers, options.runs)
    print(f"{new['tensors']} tensors, {new['numel'] / 1e6:.1f} M elements, float32, {new['device']}, torch {new['torch']}\n")
    print("| |" + "".join(f" {which} ms |" for which in columns) + " GB/s |\n|---" + "|---" * (len(columns) + 1) + "|")
    for name in new["ms"]:
        cells = "".join(f" {column['ms'][name]:.3f} |" if name in column["ms"] else " |" for column in columns.values())
        print(f"| {name} |{cells} {new['rates'].get(name, 0):.0f} |")
    print("\n| ratio |" + "".join(f" {which} |" for which in columns) + "\n|---" + "|---" * len(columns) + "|")
    every = {which: ratios_of(column["ms"]) for which, column in columns.items()}
    for name in ratios_of(new["ms"]):
        print(f"| {name} |" + "".join(f" {ratios[name]:.3g} |" if name in ratios else " |" for ratios in every.values()))
    if options.old is not None:
        print(f"\nthe same bits: {columns['old']['bits'] == new['bits']}")
    if options.json:
        Path(options.json).write_text(json.dumps({**new, "ratios": ratios_of(new["ms"])}, indent=1))


if __name__ == "__main__":
    main()
