"""A small program of a user's, all of whose types must be known; read by type checkers, never run. What `reveal_type` must say stands beside it."""

from pathlib import Path
from typing import TYPE_CHECKING

import ostate
import ostate.integrations
from ostate.probe import AdamPreconditioner, Guards, delta_h1, eval_mode, fill, lora_adamw

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from typing_extensions import reveal_type

run = Path("run")


def look() -> None:
    seen = ostate.inspect(run / "checkpoint-500", adapter=run / "lora", values=True)
    reveal_type(seen.raw.optimizer)  # str
    reveal_type(seen.raw.entries[0].shape)  # tuple[int, ...] | None
    reveal_type([finding.text for finding in seen.findings])  # list[str]
    rows, proven = ostate.names(run, adapter="lora")
    reveal_type(rows)  # list[tuple[int, str, str]]
    reveal_type(proven)  # bool


def mend() -> ostate.NamedState:
    try:
        done = ostate.repair(run, run / "lora.ostate.safetensors", base=run / "base", betas=(0.9, 0.999), strict=True)
    except ostate.OstateError as error:
        reveal_type(error.fix)  # str
        raise
    reveal_type(done)  # Repaired
    reveal_type(done.named)  # NamedState
    reveal_type(done.ordering.proven)  # bool
    reveal_type(ostate.verify(run, adapter=run).verdict)  # Literal['verified', 'recovered', 'partial', 'unverified']
    return done.named


def use(state: ostate.NamedState) -> None:
    reveal_type(len(state))  # int
    reveal_type("a" in state)  # bool
    for name in state:
        reveal_type(name)  # str
        reveal_type(state[name])  # NamedParameter
        reveal_type(state[name].step)  # float | None
    reveal_type(ostate.write(state, run / "copy.safetensors", force=True).files)  # tuple[str, ...]
    reveal_type([finding.rule for finding in ostate.validate(run / "copy.safetensors")])  # list[str]
    reveal_type(ostate.diff(run, run / "copy.safetensors").same)  # bool
    reveal_type(ostate.export(state, "torch", run / "optimizer.pt", wanted=["a", "b"], groups="trainer").path)  # str


def keep(optimizer: "Optimizer", model: "nn.Module") -> None:
    reveal_type(ostate.save(optimizer, model, run / "named.safetensors"))  # str
    reveal_type(ostate.names_of(optimizer, model))  # list[list[str]]
    reveal_type(ostate.record_names(optimizer, model, run))  # str
    reveal_type(ostate.integrations.SaveNamed("x.safetensors"))  # SaveNamed


def probe(model: "nn.Module", x: "Mapping[str, Tensor]", y: "Mapping[str, Tensor]") -> float:
    state = ostate.load(run / "lora.ostate.safetensors")
    reveal_type(state)  # NamedState
    optimizer = lora_adamw(model, state)
    reveal_type(optimizer)  # AdamW
    reveal_type(fill(optimizer, model, state).coverage)  # float
    preconditioner = AdamPreconditioner(optimizer, guards=Guards(fallback="zero"))
    reveal_type(preconditioner)  # AdamPreconditioner
    with eval_mode(model):
        result = delta_h1(x, y, eta=1e-5, preconditioner=preconditioner)
    reveal_type(result.verdict)  # Literal['healthy', 'healthy, with warnings', 'suspect', 'identity', 'empty']
    return result.value
