"""PEFT's other methods on a small real model, trained by torch's AdamW and saved as people save them: one row a method."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch

from tests import trained
from tests.evidence.runs import language_model

CAUSAL = {"task_type": "CAUSAL_LM"}


def _of(kind: str, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(peft, kind)(**{"target_modules": ["q_proj", "v_proj"], **CAUSAL, **options})


METHODS: dict[str, Callable[[], Any]] = {
    "lora": _of("LoraConfig", r=4),
    "lora_bias": _of("LoraConfig", r=4, lora_bias=True),
    "ia3": _of("IA3Config", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": _of("LoHaConfig", r=4),
    "lokr": _of("LoKrConfig", r=2),
    "adalora": _of("AdaLoraConfig", init_r=8, target_r=4, total_step=10_000, tinit=6_000, tfinal=1_000, deltaT=10),
    "vera": _of("VeraConfig", r=16),
    "boft": _of("BOFTConfig", boft_block_size=4),
    "miss": _of("MissConfig", r=4),
    "hra": _of("HRAConfig", r=8),
    "hira": _of("HiraConfig", r=4),
    "delora": _of("DeloraConfig", r=4),
    "beft": _of("BeftConfig", target_modules=["v_proj"]),
    "pvera": _of("PveraConfig", r=8),
    "road": _of("RoadConfig", group_size=8),
    "gralora": _of("GraloraConfig", r=4, gralora_k=2, hybrid_r=2),
    "glora": _of("GloraConfig", r=4),
}
SILENT: dict[str, Callable[[], Any]] = {
    "oft": _of("OFTConfig", oft_block_size=4),
    "fourierft": _of("FourierFTConfig", n_frequency=10),
    "shira": _of("ShiraConfig", r=2),
    "randlora": _of("RandLoraConfig", r=4),
    "waveft": _of("WaveFTConfig", n_frequency=16),
    "peanut": _of("PeanutConfig", r=4),
    "ln_tuning": _of("LNTuningConfig", target_modules=["input_layernorm", "post_attention_layernorm"]),
    "vblora": _of("VBLoRAConfig", r=2, num_vectors=8, vector_length=8, topk=2),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, **CAUSAL),
}
"""Methods that no test applies to, and that say so."""


def saved_steps(
    folder: Path, model: Any, loss: Callable[..., Any], named: Mapping[str, Any], stepper: Any, steps: Sequence[int], seed: int
) -> Iterator[Path]:
    """Train until the last of `steps`; yield the folder of each: what `save_pretrained` writes, optimizer.pt and names.json."""
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(1, max(steps) + 1):
        stepper.zero_grad()
        loss(model, generator).backward()
        stepper.step()
        if step in steps:
            at = folder / str(step)
            model.save_pretrained(at)
            torch.save(stepper.state_dict(), at / "optimizer.pt")
            (at / "names.json").write_text(json.dumps(list(named)))
            yield at


def train(
    folder: Path, config: Any, steps: Sequence[int], *, layers: int = 6, seed: int = 5, optimizer: Callable[..., Any] = torch.optim.AdamW
) -> Iterator[Path]:
    """Train a method on a small Llama; yield the folder of each of `steps`, with adapter, optimizer.pt and names.json."""
    net, loss = language_model(lambda: trained.llama(layers))
    torch.manual_seed(seed)
    model = peft.get_peft_model(net, config)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    stepper = optimizer(list(named.values()), lr=3e-3)
    yield from saved_steps(folder, model, loss, named, stepper, steps, seed)


def train_whole(
    folder: Path, make: Callable[[], Any], steps: Sequence[int], *, lr: float = 1e-4, seed: int = 1, optimizer: Callable[..., Any] = torch.optim.AdamW
) -> Iterator[Path]:
    """Train every weight of a model; yield the folder of each of `steps`, with model.safetensors, optimizer.pt and names.json."""
    torch.manual_seed(seed)
    net, loss = language_model(make, seed=seed)
    named = dict(net.named_parameters())
    stepper = optimizer(list(named.values()), lr=lr)
    yield from saved_steps(folder, net, loss, named, stepper, steps, seed)
