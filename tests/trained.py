"""Tiny models trained by the real Trainer during the test session, with the live optimizer kept as the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 96


@dataclass
class Trained:
    """One finished run: its checkpoint on disk, and the live objects it was written from."""

    root: Path
    checkpoint: Path
    base: Path
    model: Any
    optimizer: torch.optim.Optimizer
    names: dict[torch.nn.Parameter, str] = field(default_factory=dict)

    def live(self, slot: str) -> dict[str, torch.Tensor]:
        """Return the live optimizer's slot by parameter name."""
        return {name: self.optimizer.state[p][slot] for p, name in self.names.items() if slot in self.optimizer.state.get(p, {})}

    def fresh(self) -> Any:
        """Return the model as a user would load it: base from disk, adapter from the checkpoint, trainable."""
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(self.base), self.checkpoint, is_trainable=True)


def llama(layers: int = 12, **changes: Any) -> Any:
    """Return a random Llama of hidden size 32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    options = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=layers, pad_token_id=0, **{**options, **changes}))


def opt(layers: int = 4) -> Any:
    """Return a random OPT of hidden size 32, whose attention registers k, v, q, out."""
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            word_embed_proj_dim=32,
            max_position_embeddings=64,
            pad_token_id=0,
        )
    )


def sequences(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Return random token sequences with a repeating pattern, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        half = torch.randint(3, VOCABULARY, (8,), generator=generator)
        ids = torch.cat([half, half])
        rows.append({"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)})
    return rows


def train(root: Path, make: Callable[[], Any], *, steps: int = 12, seed: int = 0, lora: dict[str, Any] | None = None, **arguments: Any) -> Trained:
    """Train with the real Trainer and return the run; the schedule is constant unless told otherwise."""
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments, set_seed

    set_seed(seed)
    base = make()
    base.save_pretrained(root / "base")
    base.name_or_path = str(root / "base")
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, LoraConfig(**{**options, **(lora or {})}))
    settings = {
        "output_dir": str(root / "run"),
        "max_steps": steps,
        "save_steps": steps,
        "per_device_train_batch_size": 4,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
        "use_cpu": True,
        "seed": seed,
    }
    trainer = Trainer(model=model, args=TrainingArguments(**{**settings, **arguments}), train_dataset=sequences(steps * 4, seed))
    trainer.train()
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return Trained(
        root=root,
        checkpoint=root / "run" / f"checkpoint-{steps}",
        base=root / "base",
        model=model,
        optimizer=optimizer,
        names={parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad},
    )
