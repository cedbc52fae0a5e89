"""How many real runs are verified without a base model, by setting, rank and step; and that no false order of theirs is.

    python benchmarks/power.py --hidden 1024 --layers 16 --device cuda --out power.json     # minutes on one GPU
    python benchmarks/power.py                                                              # a small model, on 2 cores

Real text: the standard library's source, byte by byte. The base is first trained on it for a while, then each adapter is trained with AdamW and
saved at the steps asked for, as people save it. Every verdict comes from the files. Then the same state is claimed in false orders: kinds
exchanged, layers reversed, one shift, a swap of two modules, another run's adapter.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import ostate
from ostate.errors import OstateError

LENGTH = 128
SETTINGS: dict[str, dict[str, Any]] = {
    "r1": {"r": 1},
    "r2": {"r": 2},
    "r4": {"r": 4},
    "r8": {"r": 8},
    "r64": {"r": 64},
    "dora8": {"r": 8, "use_dora": True},
    "rl8": {"r": 8, "reward": True},
    "experts8": {"r": 8, "experts": True},
    "bnb8": {"r": 8, "eight_bit": True},
}
"""Name -> rank and what is unusual about it."""


def text() -> torch.Tensor:
    """Return a few megabytes of the standard library's source as bytes."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return torch.frombuffer(bytearray(b"\n".join(file.read_bytes() for file in files)[: 4 << 20]), dtype=torch.uint8).long()


def batches(source: torch.Tensor, count: int, size: int, seed: int, device: str) -> Iterator[torch.Tensor]:
    """Yield random windows, (size, LENGTH)."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        at = torch.randint(len(source) - LENGTH, (size,), generator=generator)
        yield torch.stack([source[start : start + LENGTH] for start in at]).to(device)


def base_model(options: argparse.Namespace, *, experts: bool) -> Any:
    """Return a Llama, or a Mixtral of sixteen experts of which some see hardly a token."""
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    size = {
        "vocab_size": 256, "hidden_size": options.hidden, "intermediate_size": options.hidden * 2, "num_hidden_layers": options.layers,
        "num_attention_heads": options.hidden // 64, "num_key_value_heads": options.hidden // 64,
    }  # fmt: skip
    if experts:
        size |= {"intermediate_size": options.hidden // 2, "num_local_experts": 16, "num_experts_per_tok": 1}
    model = (MixtralForCausalLM(MixtralConfig(**size)) if experts else LlamaForCausalLM(LlamaConfig(**size))).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    loss = torch.zeros(())
    for ids in batches(text(), options.pretrain, 16, 1, options.device):
        with torch.autocast(options.device, torch.bfloat16, enabled=options.device == "cuda"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"base: {type(model).__name__}, loss {float(loss.detach()):.2f}", flush=True)
    return model


def run(base: Any, name: str, options: argparse.Namespace, folder: Path, seed: int = 0) -> Iterator[tuple[int, Path, list[str]]]:
    """Train one adapter; yields (step, checkpoint, live names in the optimizer's order) at the steps asked for."""
    from peft import LoraConfig, get_peft_model

    setting = SETTINGS[name]
    torch.manual_seed(100 + seed)
    targets: dict[str, Any] = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
    if setting.get("experts"):
        targets = {"target_modules": ["q_proj", "v_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    lora = LoraConfig(r=setting["r"], lora_alpha=2 * setting["r"], use_dora=bool(setting.get("use_dora")), task_type="CAUSAL_LM", **targets)
    model = get_peft_model(base, lora)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    made = torch.optim.AdamW
    if setting.get("eight_bit"):
        import bitsandbytes as bnb

        made = bnb.optim.AdamW8bit
    optimizer = made([p for _, p in named], lr=2e-4, weight_decay=0.01)
    last = max(options.steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (last + 1))
    reward = torch.Generator().manual_seed(seed)
    for step, ids in enumerate(batches(text(), last, 8, 2 + seed, options.device), 1):
        with torch.autocast(options.device, torch.bfloat16, enabled=options.device == "cuda"):
            if setting.get("reward"):  # a policy gradient whose advantages are mostly zero
                logits = model(input_ids=ids).logits[:, :-1].float()
                taken = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0].sum(1)
                advantage = torch.where(torch.rand(len(ids), generator=reward) < 0.2, torch.randn(len(ids), generator=reward), torch.zeros(1))
                loss = -(taken * advantage.to(options.device)).mean()
            else:
                loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step in options.steps:
            there = folder / f"{name}-{seed}-{step}"
            model.save_pretrained(there)
            torch.save(optimizer.state_dict(), there / "optimizer.pt")
            yield step, there, [n for n, _ in named]
    model.unload()


def verdict(checkpoint: Path, adapter: Path | None = None, order: list[str] | None = None) -> tuple[str, Any]:
    """Return the verdict on a checkpoint's own order, or on names given, and the weakest alternative."""
    more = {}
    if order is not None:
        (checkpoint / "order.txt").write_text("\n".join(order) + "\n")
        more["order"] = str(checkpoint / "order.txt")
    try:
        found = ostate.verify(str(checkpoint / "optimizer.pt"), adapter=str(adapter or checkpoint), **more)
    except OstateError as refusal:
        return f"refused: {type(refusal).__name__}", str(refusal).splitlines()[0][:90]
    return found.verdict, found.weakest_alternative


def false_orders(names: list[str], layers: int) -> Iterator[tuple[str, list[str]]]:
    """Yield orders that are wrong: what was done, and the names."""

    def renamed(change: Any) -> list[str]:
        return [change(name) for name in names]

    yield "layers reversed", renamed(lambda n: n.replace(f".layers.{_layer(n)}.", f".layers.{layers - 1 - _layer(n)}.") if ".layers." in n else n)
    swap = {"k_proj": "v_proj", "v_proj": "k_proj"} if any("k_proj" in n for n in names) else {"q_proj": "v_proj", "v_proj": "q_proj"}
    yield "kinds exchanged", renamed(lambda n: next((n.replace(a, b) for a, b in swap.items() if a in n), n))
    yield "layers rotated", renamed(lambda n: n.replace(f".layers.{_layer(n)}.", f".layers.{(_layer(n) + 1) % layers}.") if ".layers." in n else n)
    one, two = ".layers.0.self_attn.q_proj.", ".layers.1.self_attn.q_proj."
    yield "two modules", renamed(lambda n: n.replace(one, two) if one in n else n.replace(two, one) if two in n else n)


def _layer(name: str) -> int:
    return int(name.split(".layers.")[1].split(".")[0])


def main() -> None:
    """Train, verify, attack, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--pretrain", type=int, default=60)
    parser.add_argument("--steps", type=lambda text: [int(part) for part in text.split(",")], default=[2, 5, 20, 60])
    parser.add_argument("--settings", type=lambda text: text.split(","), default=["r1", "r2", "r8", "dora8", "rl8"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of the adapter, its batches and the other run's: another seed is another set of files")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for experts in (False, True):
            mine = [name for name in options.settings if bool(SETTINGS[name].get("experts")) == experts]
            base = base_model(options, experts=experts) if mine else None
            for name in mine:
                early = argparse.Namespace(**{**vars(options), "steps": [min(options.steps)]})
                ((_, other, _),) = run(base, name, early, Path(root), seed=options.seed + 1)
                for step, there, names in run(base, name, options, Path(root), seed=options.seed):
                    row: dict[str, Any] = {"setting": name, "step": step, "parameters": len(names), "own": verdict(there)}
                    row["other run"] = verdict(there, adapter=other)
                    row |= {what: verdict(there, order=order) for what, order in false_orders(names, options.layers)}
                    row["given"] = verdict(there, order=names)
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    false = [
        what for row in rows for what, found in row.items() if isinstance(found, tuple) and found[0] == "verified" and what not in ("own", "given")
    ]
    own = [row for row in rows if row["setting"] != "r1"]
    print(f"verified without a base at r >= 2: {sum(row['own'][0] == 'verified' for row in own)} of {len(own)}; false orders verified: {len(false)}")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
