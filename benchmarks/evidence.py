"""How many digits a module says, by step and rank, and what a search recovers: trains LoRA runs and asks each file.

    python benchmarks/evidence.py                          # a few minutes on 2 cores; prints the tables of docs/evidence.md
    python benchmarks/evidence.py --hidden 2048 --layers 16 --ranks 16 --steps 2,5,20,100,300,600 --device cuda --out wide.json

Verdicts on whole files, false orders and other methods: `power.py` and `methods.py`.

The base model is first trained on one synthetic language, then the adapter on another, so that gradients mean something. The learning rate
falls linearly to zero at the last step. Every number comes from files that were written and read again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ostate import read as formats
from ostate.evidence.comparison import Comparison
from ostate.evidence.look import Source
from ostate.evidence.looks import How, Looks, places_of
from ostate.evidence.methods import units_of
from ostate.read import adapters

VOCABULARY = 512
LENGTH = 64
HOW: dict[How, str] = {"whole": "whole modules", "zero": "lora_B alone", "other": "lora_A alone"}
"""What an order moves of a module -> how people say it."""


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
    """Return the digits of each module at its true place, by what an order would move of it, and what a search recovers of shuffled positions."""
    raw, adapter = formats.read(str(folder / "optimizer.pt")), adapters.read_adapter(str(folder))
    looks = Looks(Source(raw, adapter), units_of(adapter, previous=None))
    places = places_of(keys, looks.modules, range(len(keys)))
    row: dict[str, Any] = {}
    for how in HOW:
        digits = [sum(np.log10(one.size / one.rank) for one in ranked) for ranked in looks.ranked(places, how)]
        row[how] = {"mean": round(float(np.mean(digits)), 3), "least": round(float(min(digits)), 3)}
    order = np.random.default_rng(0).permutation(len(keys))
    shuffled = raw._replace(entries=tuple(raw.entries[old]._replace(position=new) for new, old in enumerate(order)))
    found = Comparison(shuffled, adapter).recover()
    truth = [keys[old] for old in order]
    wrong = sum(key not in (None, truth[position]) for position, key in enumerate(found.order) if position in found.proven)
    return row | {"positions": len(keys), "recovered": len(found.proven), "wrong": wrong}


def tables(rows: list[dict[str, Any]]) -> str:
    """Return two tables in Markdown: digits, mean (least), and names recovered, by rank and step."""
    steps = sorted({row["step"] for row in rows})
    ranks = sorted({row["rank"] for row in rows})
    by_cell = {(row["rank"], row["step"]): row for row in rows}
    head = "".join(f" {step} |" for step in steps)
    lines = [f"| | step{head}", "|---" * (len(steps) + 1) + "|"]
    for how, said in HOW.items():
        for rank in ranks:
            cells = (by_cell[rank, step][how] for step in steps)
            lines.append(f"| {said}, r = {rank} | " + " | ".join(f"{cell['mean']:.2f} ({cell['least']:.2f})" for cell in cells) + " |")
    lines += ["", f"| recovered |{head}", "|---" * (len(steps) + 1) + "|"]
    for rank in ranks:
        cells = (by_cell[rank, step] for step in steps)
        lines.append(f"| r = {rank} | " + " | ".join(f"{cell['recovered']} of {cell['positions']}" for cell in cells) + " |")
    return "\n".join([*lines, "", f"wrong among the recovered: {sum(row['wrong'] for row in rows)}"])


def numbers(text: str) -> list[int]:
    """Read `1,2,3`."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Run the grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--ranks", type=numbers, default=[1, 2, 3, 4, 8])
    parser.add_argument("--steps", type=numbers, default=[2, 5, 20, 50, 100, 200, 400])
    parser.add_argument("--pretrain", type=int, default=200)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    options = parser.parse_args()
    base = pretrained(options)
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    rows = [row for rank in options.ranks for row in run(base, rank, options)]
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(tables(rows))


if __name__ == "__main__":
    main()
