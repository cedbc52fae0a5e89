"""How much the numbers of an optimizer state prove, by step and rank: trains LoRA runs, takes every position's name away, recovers them.

    python benchmarks/evidence.py                          # a few minutes on 2 cores; writes docs/pictures/evidence-*.svg
    python benchmarks/evidence.py --hidden 2048 --layers 16 --ranks 16 --steps 2,5,20,100,300,600 --device cuda --out wide.json

The base model is first trained on one synthetic language, then the adapter on another, so that gradients mean something. The learning rate
falls linearly to zero at the last step. Every number comes from files that were written and read again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ostate import read as formats
from ostate.core.naming import Adapter
from ostate.core.state import RawState
from ostate.evidence.densities import fit_densities, path_scores, projected_scores
from ostate.evidence.judge import judge
from ostate.evidence.paths import Paths
from ostate.evidence.search import from_keys, search
from ostate.evidence.tables.tables import gather
from ostate.read import adapters

VOCABULARY = 512
LENGTH = 64


def language(seed: int) -> torch.Tensor:
    """Return the transition matrix of a language: every word has 8 likely successors."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.full((VOCABULARY, VOCABULARY), 1e-4)
    for row in table:
        row[torch.randint(VOCABULARY, (8,), generator=generator)] += torch.rand(8, generator=generator)
    return table / table.sum(1, keepdim=True)


def sentences(table: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return `count` random walks, (count, LENGTH)."""
    words = torch.randint(VOCABULARY, (count,), generator=generator)
    walk = [words]
    for _ in range(LENGTH - 1):
        words = torch.multinomial(table[words], 1, generator=generator)[:, 0]
        walk.append(words)
    return torch.stack(walk, 1)


def train(model: Any, table: torch.Tensor, *, steps: int, rate: float, batch: int, seed: int, at: Any = None) -> float:
    """Train with AdamW, the rate falling linearly to zero; calls `at(step, optimizer)` after every step; returns the last loss."""
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    loss = torch.zeros(())
    for step in range(1, steps + 1):
        ids = sentences(table, batch, generator).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if at:
            at(step, optimizer)
    return float(loss)


def pretrained(options: argparse.Namespace) -> Any:
    """Return a small Llama that has learnt the first language."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=max(options.hidden // 64, 4),
        num_key_value_heads=max(options.hidden // 128, 2),
    )
    model = LlamaForCausalLM(config).to(options.device)
    loss = train(model, language(1), steps=options.pretrain, rate=3e-4 if options.hidden > 512 else 2e-3, batch=options.batch, seed=1)
    print(f"base: hidden {options.hidden}, {options.layers} layers, loss {loss:.2f}", flush=True)
    return model


def run(base: Any, rank: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train one adapter and measure it at every step asked for."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(rank)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    rows: list[dict[str, Any]] = []

    def at(step: int, optimizer: torch.optim.Optimizer) -> None:
        if step in options.steps:
            with tempfile.TemporaryDirectory() as folder:
                torch.save(optimizer.state_dict(), Path(folder) / "optimizer.pt")
                model.save_pretrained(folder)
                row = measure(Path(folder), [name.replace(".default", "") for name in names])
            rows.append({"rank": rank, "step": step} | row)
            print(json.dumps(rows[-1]), flush=True)

    train(model, language(2), steps=max(options.steps), rate=options.rate, batch=options.batch, seed=2, at=at)
    model.unload()
    return rows


def measure(folder: Path, keys: list[str]) -> dict[str, Any]:
    """Shuffle the positions, recover their names with nothing but the numbers, and say how it went."""
    raw, adapter = formats.read(str(folder / "optimizer.pt")), adapters.read_adapter(str(folder))
    order = np.random.default_rng(0).permutation(len(keys))
    raw = raw._replace(entries=tuple(raw.entries[old]._replace(position=new) for new, old in enumerate(order)))
    truth = [keys[old] for old in order]
    clock = time.process_time()
    tables = gather(raw, adapter, previous=None, base=None)
    paths = Paths(tables.reader, tables.displaced)
    match, now = search(tables, paths, claimed=None, fixed={})
    found = judge(tables, paths, match, now, raw, claimed=None)
    seconds = time.process_time() - clock
    row: dict[str, Any] = {"seconds": round(seconds, 2), "margin": found.margin, "used": found.used, "foreign": found.foreign}
    for factor in ("lora_A", "lora_B"):
        mine = [position for position, key in enumerate(truth) if factor in key]
        row[factor] = {
            "positions": len(mine),
            "assigned": sum(match.get(truth[p]) == p for p in mine),
            "proven": sum(p in found.proven for p in mine),
            "wrong": sum(found.order[p] not in (None, truth[p]) for p in mine),
            "wrong_proven": sum(p in found.proven and found.order[p] != truth[p] for p in mine),
        }
    return row | levels(raw, adapter, truth)


def levels(raw: RawState, adapter: Adapter, truth: list[str]) -> dict[str, Any]:
    """Return what each test says of true and of false pairs, at the true order."""
    tables = gather(raw, adapter, previous=None, base=None)
    paths, match = Paths(tables.reader, tables.displaced), from_keys(truth, tables)
    densities = fit_densities(tables, paths, match)
    row: dict[str, Any] = {}
    cosine = [float(pair.cosine[i, pair.zero_positions.index(match[m.zero])]) for pair in tables.pairs for i, m in enumerate(pair.modules)]
    noise = np.concatenate([(pair.cosine / pair.spread).reshape(-1) for pair in tables.pairs])
    row["displacement"] = {"median": float(np.median(cosine)), "min": min(cosine), "null_sd_in_spreads": float(noise.std())}
    for name, candidates in (("projected", projected_scores(tables, match)), ("path", path_scores(tables, paths, match))):
        on: list[float] = []
        off: list[float] = []
        for each in candidates:
            matched = np.zeros(each.values.shape, bool)
            matched[each.cells()] = True
            on.extend(np.exp(-each.values[matched]))
            off.extend(np.exp(-each.values[~matched]))
        if on:
            false = np.array(off)
            row[name] = {
                "median": float(np.median(on)),
                "max": float(max(on)),
                "false_median": float(np.median(false)),
                "false_min": float(false.min()),
            }
    informative = [rank for rank, density in densities.balance.items() if density.is_informative]
    row["informative"] = {"projection": densities.projection.is_informative, "balance": informative, "path": list(densities.path)}
    return row


def plot(rows: list[dict[str, Any]], folder: Path) -> None:
    """Draw the share of proven names, and the residual of true and false pairs, by step and rank."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "ostate"
    import matplotlib.pyplot as plt

    ranks = sorted({row["rank"] for row in rows})
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for axis, factor in zip(axes, ("lora_B", "lora_A")):
        for rank in ranks:
            mine = [row for row in rows if row["rank"] == rank]
            axis.plot([row["step"] for row in mine], [row[factor]["proven"] / row[factor]["positions"] for row in mine], "o-", label=f"r = {rank}")
        axis.set(title=f"{factor}: share proven", xscale="log", xlabel="step", ylim=(-0.05, 1.05))
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(folder / "evidence-power.svg", metadata={"Date": None})
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
    for rank in ranks:
        mine = [row for row in rows if row["rank"] == rank]
        steps = [row["step"] for row in mine]
        axes[0].plot(steps, [row["displacement"]["median"] for row in mine], "o-", label=f"r = {rank}")
        for axis, test in zip(axes[1:], ("projected", "path")):
            there = [row for row in mine if test in row]
            (line,) = axis.plot([row["step"] for row in there], [row[test]["median"] for row in there], "o-")
            axis.plot([row["step"] for row in there], [row[test]["false_median"] for row in there], ":", color=line.get_color())
    axes[0].set(title="displacement: cosine of true pairs", xscale="log", xlabel="step", ylim=(0, 1))
    axes[0].legend()
    for axis, title in zip(axes[1:], ("balance, drift projected out: residual", "balance along the path: residual")):
        axis.set(title=title, xscale="log", yscale="log", xlabel="step")
    figure.tight_layout()
    figure.savefig(folder / "evidence-laws.svg", metadata={"Date": None})


def numbers(text: str) -> list[int]:
    """Read `1,2,3`."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Run the grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--ranks", type=numbers, default=[1, 2, 4, 8, 16])
    parser.add_argument("--steps", type=numbers, default=[1, 2, 3, 5, 10, 20, 50, 100, 200, 400])
    parser.add_argument("--pretrain", type=int, default=200)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/evidence.json"))
    options = parser.parse_args()
    base = pretrained(options)
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    rows = [row for rank in options.ranks for row in run(base, rank, options)]
    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    if options.out.parent.name == "pictures":
        plot(rows, options.out.parent)


if __name__ == "__main__":
    main()
