"""How cost grows: `inspect` with tensors and with bytes, `repair --no-evidence` with bytes, `verify` with layers and with rank.

    python benchmarks/growth.py                 # minutes, 2 GB of disk; writes docs/img/growth.svg and docs/growth.json
    python benchmarks/growth.py --plot          # draws docs/growth.json again

States of many GB are sparse files: their tensors are holes, which cost no disk and read as zeros.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import made
from measure import OSTATE, PYTHON, Cost, Task, alternately, median

DOCS = Path(__file__).resolve().parent.parent / "docs"
MANY = (
    "import sys, torch; n = int(sys.argv[2]); p = [torch.nn.Parameter(torch.zeros(2)) for _ in range(n)]; o = torch.optim.AdamW(p);"
    "v = torch.ones(2);\nfor one in p: one.grad = v\no.step(); torch.save(o.state_dict(), sys.argv[1])"
)
SPARSE = "import sys; sys.path.insert(0, sys.argv[3]); import growth; growth.sparse(sys.argv[1], int(sys.argv[2]))"
TENSORS = (1_000, 10_000, 100_000)
SIZES = (10, 1_000, 50_000)
"""MB."""


def sparse(path: str, megabytes: int) -> None:
    """Write a state of 448 parameters whose tensors are holes: torch.save told to skip the data."""
    import torch

    rows = max(1, megabytes * 10**6 // (448 * 2 * 4 * 64))
    with torch.serialization.skip_data():
        state = {i: {"step": torch.tensor(9.0), "exp_avg": torch.empty(rows, 64), "exp_avg_sq": torch.empty(rows, 64)} for i in range(448)}
        group = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "params": list(range(448))}
        torch.save({"state": state, "param_groups": [group]}, path)


def measured(name: str, x: float, command: list[str], statuses: tuple[int, ...] = (0, 1), before=None) -> dict[str, float]:
    cost: Cost = median(alternately([Task(name, command, before, statuses)], 3)[name])
    row = {"x": x, "cpu": round(cost.cpu, 3), "peak": round(cost.peak, 1)}
    print(name, row, flush=True)
    return row


def grow(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Return rows by curve."""
    found: dict[str, list[dict[str, float]]] = {"inspect, tensors": [], "inspect, MB": [], "repair, MB": [], "verify, layers": [], "verify, rank": []}
    state = folder / "optimizer.pt"
    for count in TENSORS:
        os.spawnv(os.P_WAIT, PYTHON, [PYTHON, "-c", MANY, str(state), str(count // 3)])
        found["inspect, tensors"].append(measured("inspect", count, [*OSTATE, "-q", "inspect", str(state)]))
    for size in SIZES:
        os.spawnv(os.P_WAIT, PYTHON, [PYTHON, "-c", SPARSE, str(state), str(size), str(Path(__file__).parent)])
        found["inspect, MB"].append(measured("inspect", size, [*OSTATE, "-q", "inspect", str(state)]))
    state.unlink()
    out = folder / "out.safetensors"
    for curve, settings in (
        ("repair, MB", [{"rank": rank} for rank in (1, 8, 32)]),
        ("verify, layers", [{"rank": 8, "layers": layers} for layers in (8, 32, 80)]),
        ("verify, rank", [{"rank": rank, "layers": 8} for rank in (4, 16, 64)]),
    ):
        for setting in settings:
            with made.checkpoint(**setting) as place:
                if curve.startswith("repair"):
                    command = [*OSTATE, "-q", "repair", str(place), "--no-evidence", "-o", str(out), "--force"]
                    found[curve].append(measured(curve, (place / "optimizer.pt").stat().st_size / 1e6, command))
                    out.unlink()
                else:
                    x = setting["layers"] if curve.endswith("layers") else setting["rank"]
                    found[curve].append(measured(curve, x, [*OSTATE, "-q", "verify", str(place)]))
    return found


def plot(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draw CPU seconds and MB of every curve."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "ostate"
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, axes = plt.subplots(2, len(found), figsize=(3 * len(found), 5), sharey="row")
    for column, (name, rows) in enumerate(found.items()):
        for line, key in enumerate(("cpu", "peak")):
            axis = axes[line, column]
            axis.plot([row["x"] for row in rows], [row[key] for row in rows], "o-", color="#3b6ea5")
            axis.set(xscale="log", yscale="log", xlabel=name.partition(", ")[2] if line else "", title="" if line else name.partition(", ")[0])
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("CPU seconds")
    axes[1, 0].set_ylabel("peak MB")
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, keep the numbers, draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", action="store_true", help="only draw what was measured")
    options = parser.parse_args()
    kept = DOCS / "growth.json"
    if not options.plot:
        folder = Path(tempfile.mkdtemp(prefix="ostate-growth-"))
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "pyc")
        try:
            kept.write_text(json.dumps(grow(folder), indent=1) + "\n")
        finally:
            shutil.rmtree(folder)
    plot(json.loads(kept.read_text()), DOCS / "img" / "growth.svg")


if __name__ == "__main__":
    sys.exit(main())
