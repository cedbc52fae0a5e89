"""How fast is the preconditioner? Against a plain loop, torch's own AdamW steps and a device copy, all in this one run.

    python benchmarks/preconditioner.py [--device cuda] [--layers 32]

The parameters are those of a LoRA of rank 16 on every linear layer of a Llama of hidden size 4096: 448 tensors, 40.0 M elements, float32.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.seed_loop import seed_apply
from ostate.probe import AdamPreconditioner


def shapes(layers: int, hidden: int = 4096, inner: int = 11008, r: int = 16) -> list[tuple[int, int]]:
    layer = [(hidden, hidden)] * 4 + [(hidden, inner)] * 2 + [(inner, hidden)]
    return [shape for _ in range(layers) for into, out in layer for shape in ((r, into), (out, r))]


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


def optimizer_of(parameters: list[torch.Tensor], **flags: bool) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, **flags)
    optimizer.step()
    for state in optimizer.state.values():
        state["exp_avg_sq"].uniform_(1e-14, 1e-12)
        state["step"].fill_(500.0)
    return optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", help="where to write the numbers")
    options = parser.parse_args()
    device, runs = options.device, options.runs
    logging.disable(logging.CRITICAL)
    torch.manual_seed(0)
    if device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    parameters = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in shapes(options.layers)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 1e-6
    numel = sum(parameter.numel() for parameter in parameters)
    steps = {
        name: optimizer_of(parameters, **flags)
        for name, flags in {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}.items()
    }
    pre = AdamPreconditioner(steps["loop"])
    exact = AdamPreconditioner(steps["loop"], precision="float64")
    gradients = {parameter: parameter.grad for parameter in parameters}
    (x,), (g,) = pre.layout.flatten(gradients), pre.layout.flatten({parameter: torch.randn_like(parameter) for parameter in parameters})
    out, spare = torch.empty_like(x), torch.empty_like(x)
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
        "apply, one by one": (lambda: [pre.apply(p, p.grad) for p in parameters], 0),
        "dot, <x, P g>": (lambda: pre.dot(x, g), 3),
        "dot, float64 P": (lambda: exact.dot(x, g), 0),
        "refresh (read the moments again)": (pre.refresh, 0),
    }
    for optimizer in (steps["loop"], steps["foreach"], steps["fused"]):
        optimizer.param_groups[0]["lr"] = 0.0
    found = {}
    print(f"{len(parameters)} tensors, {numel / 1e6:.1f} M elements, float32, {device}, torch {torch.__version__}\n")
    print("| | ms | GB/s |\n|---|---|---|")
    for name, (call, passes) in work.items():
        pre._stale = exact._stale = False  # the timed steps move the moments; what is timed here is the use of a diagonal, not its renewal
        found[name] = timed(call, device, 5 if "loop" in name or "refresh" in name else runs)
        rate = f"{passes * 4 * numel / found[name] / 1e6:.0f}" if passes else ""
        print(f"| {name} | {found[name]:.3f} | {rate} |", flush=True)
    reference = seed_apply(steps["foreach"], parameters[0], parameters[0].grad)
    ratios = {
        "apply bandwidth / device copy bandwidth": 1.5 * found["device copy"] / found["apply, flat"],
        "apply / fused AdamW step": found["apply, flat"] / found["AdamW step, fused"],
        "apply, float64 inside / fused AdamW step": found["apply, flat, float64 inside"] / found["AdamW step, fused"],
        "per-parameter loop / apply": found["per-parameter loop with guards"] / found["apply, flat"],
        "dot / reading its inputs": found["dot, <x, P g>"] / found["read three buffers (sum of each)"],
        "dot / its inputs at copy bandwidth": found["dot, <x, P g>"] / (1.5 * found["device copy"]),
        "refresh / fused AdamW step": found["refresh (read the moments again)"] / found["AdamW step, fused"],
    }
    print("\n| ratio | |\n|---|---|")
    for name, value in ratios.items():
        print(f"| {name} | {value:.3g} |")
    assert torch.isfinite(reference).all()
    if options.json:
        Path(options.json).write_text(json.dumps({"ms": found, "ratios": ratios, "numel": numel, "torch": torch.__version__}, indent=1))


if __name__ == "__main__":
    main()
