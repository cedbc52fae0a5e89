"""What `ostate demo` does: a tiny LoRA under the real Trainer, its state put in by position, repaired, and put in by name.

Everything is made here: random initial weights, synthetic text, no network. It takes half a minute on two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from ostate import store
from ostate.errors import OstateError
from ostate.probe import AdamPreconditioner, delta_h1, eval_mode, lora_adamw

Say = Callable[[str], None]
Run = Callable[[list[str]], tuple[int, str]]
"""Runs the command line in this process, which has imported all that it needs; returns its exit code and what it printed."""
STEPS = 24
LAYERS = 12
_SEED = 7
_EPS = 1e-8


def story(root: Path, say: Say, command: Run) -> dict[str, float]:
    """Train, misuse the state, repair it, probe with it; arguments and result as of `demo.run`."""
    say(f"1. Training: a Llama of {LAYERS} layers (random weights), LoRA on every linear layer, {STEPS} steps of the real transformers.Trainer")
    checkpoint = train(root)
    say(f"   {checkpoint}/optimizer.pt knows its parameters as 0, 1, 2, …\n")
    say("2. What people do: AdamW over all parameters, state put in by position")
    refusal, wrong = by_position(root, checkpoint)
    say(f"   optimizer.load_state_dict: {refusal}")
    say(f"   by position: {wrong['right']:.0f} of {wrong['trainable']:.0f} LoRA parameters have their own exp_avg_sq")
    say(f"   {_bars(wrong)}\n")
    say("3. Repair")
    named = _commands(root, checkpoint, say, command)
    say("4. The same probe with the named state")
    right = by_name(root, checkpoint, named)
    say(f"   coverage {right['coverage']:.0%}; median scale {right['median_scale']:.3g}, clamped {right['clamped']:.2%}")
    say(f"   {_bars(right)}")
    blow_up = abs(wrong["bars_dot"] / right["bars_dot"])
    say(f"   by position it was {blow_up:.1e} times too large\n")
    if right["coverage"] != 1.0:
        raise OstateError("the demo did not reach full coverage", where=str(named), fix="please report this with `pip freeze`")
    say(f"Files: {root}. Next: ostate inspect {checkpoint}, ostate verify {named} --adapter {checkpoint}")
    return {"blow_up": blow_up, **{f"position_{k}": v for k, v in wrong.items()}, **{f"name_{k}": v for k, v in right.items()}}


def _bars(found: dict[str, float]) -> str:
    ratio = abs(found["bars_dot"] / found["identity"])
    return f"bars_dot without preconditioner {found['identity']:.3e}, with it {found['bars_dot']:.3e}: {ratio:.1e} times"


def _commands(root: Path, checkpoint: Path, say: Say, command: Run) -> Path:
    """Run inspect, repair and validate as a person would, and show what they print."""
    named = root / "lora.ostate.safetensors"
    for arguments in (
        ["inspect", str(checkpoint)],
        ["repair", str(checkpoint), "--base", str(root / "base"), "-o", str(named), "--force"],
        ["validate", str(named), "--deep"],
    ):
        say(f"   $ ostate {' '.join(arguments)}")
        code, printed = command(arguments)
        for line in printed.splitlines():
            say(f"   {line}".rstrip())
        say("")
        if code not in (0, 1):
            raise OstateError(f"`ostate {arguments[0]}` ended with exit code {code}", where=str(root), fix="please report this")
    return named


def train(root: Path) -> Path:
    """Train the tiny model and return its checkpoint folder; the base model goes to `root/base`."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    set_seed(_SEED)
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    base = LlamaForCausalLM(config)
    base.save_pretrained(root / "base")
    base.name_or_path = str(root / "base")
    base.config._name_or_path = str(root / "base")
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    arguments = TrainingArguments(
        output_dir=str(root / "run"), max_steps=STEPS, save_steps=STEPS, per_device_train_batch_size=8, learning_rate=2e-3, report_to=[],
        disable_tqdm=True, logging_strategy="no", use_cpu=True, seed=_SEED, dataloader_pin_memory=False,
    )  # fmt: skip
    torch.set_num_threads(1)  # so small that threads would only wait for each other
    trainer = Trainer(model=model, args=arguments, train_dataset=texts(STEPS * 8))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return root / "run" / f"checkpoint-{STEPS}"


def texts(count: int, seed: int = _SEED, length: int = 32) -> list[dict[str, torch.Tensor]]:
    """Return synthetic sequences with something to learn: each token follows from the one before, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    follow = torch.randperm(125, generator=torch.Generator().manual_seed(0)) + 3
    out = []
    for _ in range(count):
        tokens = [int(torch.randint(3, 128, (1,), generator=generator))]
        noise = torch.rand(length, generator=generator)
        for i in range(1, length):
            tokens.append(int(follow[tokens[-1] - 3]) if noise[i] > 0.2 else int(torch.randint(3, 128, (1,), generator=generator)))
        ids = torch.tensor(tokens)
        out.append({"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)})
    return out


def by_position(root: Path, checkpoint: Path) -> tuple[str, dict[str, float]]:
    """Do what the misuse does; return what torch says of it, and the numbers that come of it."""
    model = load_model(root, checkpoint)
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    optimizer = torch.optim.AdamW(model.parameters())
    try:
        optimizer.load_state_dict(saved)
        refusal = "loaded"
    except ValueError as error:
        refusal = f"refuses ({error})"
    parameters = list(model.parameters())
    for position, entry in saved["state"].items():
        optimizer.state[parameters[position]] = entry
    trainable = [p for p in parameters if p.requires_grad]
    order = {id(p): i for i, p in enumerate(trainable)}
    right = sum(
        1 for p in trainable if "exp_avg_sq" in optimizer.state[p] and optimizer.state[p]["exp_avg_sq"] is saved["state"][order[id(p)]]["exp_avg_sq"]
    )
    xbar, ybar = two_gradients(model)
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    identity = sum(float((xbar[name].double() * ybar[name].double()).sum()) for name in names)
    scaled = sum(float((xbar[name].double() * _naive(ybar[name], optimizer.state[p])).sum()) for name, p in names.items())
    return refusal, {"right": right, "trainable": len(trainable), "identity": identity, "bars_dot": scaled}


def _naive(gradient: torch.Tensor, entry: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return g / (sqrt(v) + eps) with a v that is missing, or has another parameter's shape, taken for zero."""
    v = entry.get("exp_avg_sq")
    if v is None or v.shape != gradient.shape:
        v = torch.zeros_like(gradient)
    return gradient.double() / (v.double().sqrt() + _EPS)


def by_name(root: Path, checkpoint: Path, named: Path) -> dict[str, float]:
    """Load the named state into a LoRA-only AdamW and run the same probe."""
    model = load_model(root, checkpoint)
    optimizer = lora_adamw(model, store.load(str(named)))
    preconditioner = AdamPreconditioner(optimizer)
    xbar, ybar = two_gradients(model)
    result = delta_h1(xbar, ybar, eta=1e-5, preconditioner=preconditioner)
    stats = preconditioner.stats()
    return {
        "coverage": stats["coverage"],
        "median_scale": stats["median_scale"],
        "clamped": stats["clamped"],
        "identity": result.bars_dot_identity,
        "bars_dot": result.bars_dot,
    }


def load_model(root: Path, checkpoint: Path) -> PeftModel:
    """Return the model as a user would load it: base from disk, adapter from the checkpoint, trainable."""
    return PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(root / "base"), checkpoint, is_trainable=True)


def two_gradients(model: PeftModel) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the mean LoRA gradients, by name, of two batches the run has not seen."""
    bars = []
    with eval_mode(model):
        for seed in (101, 102):
            rows = texts(4, seed=seed)
            batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
            model.zero_grad(set_to_none=True)
            model(**batch).loss.backward()
            bars.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    model.zero_grad(set_to_none=True)
    return bars[0], bars[1]
