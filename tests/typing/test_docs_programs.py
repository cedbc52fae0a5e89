"""The programs that README.md and docs/adopting.md show: sound under mypy's strict mode as a reader would paste them, and run on a tiny LoRA."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest
import torch

import ostate
from ostate.probe import AdamPreconditioner, lora_adamw
from tests.probe.training import batch, tiny_lora, train

ROOT = Path(__file__).parents[2]
HEAD = """# mypy: allow-untyped-calls
from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW
"""
LOADER = """
def load(model: nn.Module, lr: float | None) -> AdamW:
{body}
    return opt
"""
PROBE = """
class Probe:
    def __init__(self, model: nn.Module, preconditioner: AdamPreconditioner) -> None:
        self.model, self.preconditioner, self.logger = model, preconditioner, logging.getLogger("probe")

    def entropy(self, batch: Any) -> Tensor:
        logits: Tensor = self.model(input_ids=batch["input_ids"]).logits
        return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()

    def objective(self, batch: Any) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        return loss

    def run(self, e_batches: Iterable[Any], u_batches: Iterable[Any], eta: float) -> float:
{body}
        return result.value
"""
README = """
def readme(
    peft_model: nn.Module, entropy: Callable[[Any], Tensor], objective: Callable[[Any], Tensor], batch_e: Any, batch_u: Any
) -> tuple[float, object]:
{body}
    return result.value, pre.stats()["coverage"]
"""
AFTER = re.compile(r"^After[^\n]*\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def program() -> str:
    """Return the blocks as one module, each in the function that a reader would paste it into."""
    loader, names, probe = AFTER.findall((ROOT / "docs" / "adopting.md").read_text(encoding="utf-8"))
    readme = re.search(r"^## In probe code\n\n```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert readme is not None
    return "\n".join(
        [
            HEAD,
            names,
            LOADER.format(body=indent(loader, " " * 4)),
            PROBE.format(body=indent(probe, " " * 8)),
            README.format(body=indent(readme[1], " " * 4)),
        ]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    model = tiny_lora()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    train(model, optimizer, 8)
    folder = tmp_path_factory.mktemp("programs")
    ostate.save(optimizer, model, folder / "lora.ostate.safetensors")
    return model, folder


def test_they_are_typed(tmp_path):
    """Strict, as the project's configuration says, but for untyped calls: torch's `backward` has no annotations."""
    file = tmp_path / "pasted.py"
    file.write_text(program(), encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "mypy", str(file)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_they_run_and_agree(trained, monkeypatch):
    model, folder = trained
    monkeypatch.chdir(folder)
    made: dict[str, object] = {}
    exec(compile(program(), "pasted.py", "exec"), made)
    assert len(made["load"](model, None).param_groups[0]["params"]) == len([p for p in model.parameters() if p.requires_grad])
    pre = AdamPreconditioner(lora_adamw(model, ostate.load("lora.ostate.safetensors")))
    probe = made["Probe"](model, pre)
    value, coverage = made["readme"](model, probe.entropy, probe.objective, batch(1), batch(2))
    assert coverage == 1.0
    assert value == pytest.approx(probe.run([batch(1)], [batch(2)], 1e-5), rel=1e-4)
