"""What becomes of every name of `TrainingArguments(optim=…)`, and of other optimizers: rows for the tests and for docs/recipes/resuming.md.

`python -m tests.exporters.optim_list docs/recipes/resuming.md` writes the tables anew.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import bitsandbytes.optim as bnb
import torch
import torchao.optim

from tests.optimizers.others import WRITTEN, Make

PLACES = ("the names of optim=", "optimizers of packages")
"""Marks on the page, around each table."""
Same = Literal["bit for bit", "starts cold", "refused", "does not start"]
InAdamW = Literal["bit for bit", "same moments", "same moments, decoded", "refused", "-"]
LOW_RANK = {"optim_target_modules": r".*lora_[AB]\.default", "optim_args": "rank=4,update_proj_gap=2"}
PROJECTED = "refused: the moments of its low-rank groups live in a projected space, and Trainer cannot load its own file either"
LAYERWISE = "refused: Trainer saves none of its moments, and its own resume starts cold"
NO_CUDA = "Torch not compiled with CUDA"


@dataclass(frozen=True)
class Row:
    """One name of `optim=`."""

    same: Same
    """Resumed by the same optimizer from `ostate export --to torch`, against the run that was not stopped."""
    adamw: InAdamW
    """Resumed by `optim="adamw_torch"` from `ostate export --to torch --as adamw_torch`."""
    text: str = ""
    """What the page says in place of `same`."""
    error: str = ""
    """Where it does not start on a CPU: what the first step says."""
    package: str | None = None
    """What it needs beside the test extra."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of TrainingArguments, beside `optim`."""


_EXACT = Row("bit for bit", "refused")
_PACKED = Row("bit for bit", "same moments, decoded")
_MOMENTS = Row("bit for bit", "same moments")

ROWS: dict[str, Row] = {
    "adamw_torch": Row("bit for bit", "bit for bit"),
    "adamw_torch_fused": _MOMENTS,
    "adamw_torch_8bit": _PACKED,
    "adamw_torch_4bit": _PACKED,
    "adamw_8bit": _PACKED,
    "adamw_bnb_8bit": _PACKED,
    "paged_adamw_8bit": _PACKED,
    "paged_adamw_32bit": _MOMENTS,
    "ademamix": _EXACT,
    "ademamix_8bit": _EXACT,
    "paged_ademamix_32bit": _EXACT,
    "paged_ademamix_8bit": _EXACT,
    "lion_32bit": _EXACT,
    "lion_8bit": _EXACT,
    "paged_lion_32bit": _EXACT,
    "paged_lion_8bit": _EXACT,
    "rmsprop": _EXACT,
    "rmsprop_bnb": _EXACT,
    "rmsprop_bnb_8bit": _EXACT,
    "rmsprop_bnb_32bit": _EXACT,
    "adafactor": _EXACT,
    "adagrad": _EXACT,
    "sgd": _EXACT,
    "schedule_free_adamw": _EXACT,
    "schedule_free_radam": _EXACT,
    "schedule_free_sgd": _EXACT,
    "stable_adamw": _EXACT,
    "grokadamw": Row("starts cold", "refused", "starts cold, as from its own file: it looks for its moments in its groups", package="grokadamw"),
    "lomo": Row("refused", "-", "refused: it keeps no state, and needs none to go on", package="lomo_optim"),
    "galore_adamw": Row("refused", "-", PROJECTED, package="galore_torch", settings=LOW_RANK),
    "galore_adafactor": Row("refused", "-", PROJECTED, package="galore_torch", settings=LOW_RANK),
    "apollo_adamw": Row("refused", "-", PROJECTED, package="apollo_torch", settings=LOW_RANK),
    "galore_adamw_layerwise": Row("refused", "-", LAYERWISE, package="galore_torch", settings=LOW_RANK),
    "apollo_adamw_layerwise": Row("refused", "-", LAYERWISE, package="apollo_torch", settings=LOW_RANK),
    "galore_adamw_8bit": Row("does not start", "-", "not tried: asks for CUDA", NO_CUDA, "galore_torch", LOW_RANK),
    "galore_adamw_8bit_layerwise": Row("does not start", "-", "not tried: asks for CUDA", NO_CUDA, "galore_torch", LOW_RANK),
    "galore_adafactor_layerwise": Row(
        "does not start", "-", "not tried: Trainer cannot start it (`lr` beside `relative_step`)", "Cannot combine manual", "galore_torch", LOW_RANK
    ),
    "adalomo": Row("does not start", "-", "not tried: asks for CUDA", NO_CUDA, "lomo_optim"),
    "adamw_torch_xla": Row("does not start", "-", "not tried: asks for torch_xla", "failed to import syncfree AdamW"),
    "adamw_torch_npu_fused": Row("does not start", "-", "not tried: asks for torch_npu", "failed to import FusedAdamW"),
    "adamw_anyprecision": Row("does not start", "-", "not tried: asks for torchdistx, which no registry has", "install"),
}
"""By the name, as `transformers.training_args.OptimizerNames` has them."""


TORCH: dict[str, Make] = {
    "torch.optim.Adam": torch.optim.Adam,
    "torch.optim.Adam, amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
    "torch.optim.NAdam": torch.optim.NAdam,
    "torch.optim.RAdam": torch.optim.RAdam,
    "torch.optim.Adamax": torch.optim.Adamax,
    "torch.optim.Adadelta": torch.optim.Adadelta,
    "torch.optim.Adafactor": torch.optim.Adafactor,
    "torch.optim.ASGD": torch.optim.ASGD,
    "torch.optim.Rprop": torch.optim.Rprop,
    "torch.optim.RMSprop, centered": lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.9),
    "torch.optim.SGD, momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "bitsandbytes.optim.LAMB8bit": bnb.LAMB8bit,
    "bitsandbytes.optim.LAMB32bit": bnb.LAMB32bit,
    "bitsandbytes.optim.LARS8bit": lambda p: bnb.LARS8bit(p, lr=1e-3, momentum=0.9),
    "bitsandbytes.optim.SGD8bit": lambda p: bnb.SGD8bit(p, lr=1e-3, momentum=0.9),
    "bitsandbytes.optim.SGD32bit": lambda p: bnb.SGD32bit(p, lr=1e-3, momentum=0.9),
    "bitsandbytes.optim.Adagrad8bit": bnb.Adagrad8bit,
    "bitsandbytes.optim.Adagrad32bit": bnb.Adagrad32bit,
    "torchao.optim.AdamWFp8": torchao.optim.AdamWFp8,
}
REFUSED = ("pytorch_optimizer.SPAM", "pytorch_optimizer.StableSPAM")
"""What cannot go on from what a named file keeps."""
PACKAGES: dict[str, Make] = {**TORCH, **{name: make for name, (_, make) in WRITTEN.items() if name not in REFUSED}}
"""By the class, as its users write it."""
_BIASED = ("Adam", "NAdam", "RAdam", "AdamP", "LAMB8bit", "LAMB32bit", "AdamWFp8", "Adam, amsgrad")


def in_adamw(name: str) -> InAdamW:
    """Return what torch's AdamW makes of the state of one of `PACKAGES`: it goes on from moments that are kept as it keeps its own."""
    package, _, last = name.rpartition(".")
    if last not in _BIASED or package == "optimi":
        return "refused"
    return "same moments, decoded" if last.endswith(("8bit", "Fp8")) else "same moments"


def of_packages() -> str:
    """Return the table of other optimizers as Markdown, those of one outcome in one row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name in PACKAGES:
        same = "its moments leave as float32, with a warning" if name in FLOATS else "bit for bit"
        rows.setdefault((same, in_adamw(name)), []).append(f"`{name}`")
    head = "| optimizer | goes on in the same one | goes on in torch's AdamW |\n|---|---|---|\n"
    return head + "".join(f"| {', '.join(names)} | {same} | {adamw} |\n" for (same, adamw), names in rows.items())


FLOATS = ("torchao.optim.AdamWFp8",)
"""What is not packed again."""


def table() -> str:
    """Return the table of names as Markdown."""
    head = '| `optim=` | goes on in the same optimizer | goes on in `optim="adamw_torch"`, by `--as adamw_torch` |\n|---|---|---|\n'
    return head + "".join(f"| `{name}` | {row.text or row.same} | {row.adamw} |\n" for name, row in ROWS.items())


def renewed(page: str) -> str:
    """Return the page with its tables replaced."""
    for place, text in zip(PLACES, (table(), of_packages())):
        begin, end = f"<!-- {place}: begin -->", f"<!-- {place}: end -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{text}{end}{rest.partition(end)[2]}"
    return page


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
