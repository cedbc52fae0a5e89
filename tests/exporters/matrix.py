"""Which program reads which export, and what arrives: the rows of `test_matrix.py`, and of the table in docs/recipes/index.md.

`python -m tests.exporters.matrix docs/recipes/index.md` writes the table anew.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import ostate

from .consumers import bergson_normalizers, dattri_optimizer, less_moments, ota_preconditioner
from .test_resume import adapted, trainer

BEGIN, END = "<!-- who reads what: begin -->", "<!-- who reads what: end -->"
Found = dict[str, dict[str, Any]]
"""name -> slot -> tensor, as the program holds it after loading."""
BOTH, EVERYTHING = ("exp_avg", "exp_avg_sq"), ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class Stopped:
    """A run that was stopped, and its named state."""

    base: Path
    checkpoint: Path
    named: str
    groups: list[list[str]]

    def model(self) -> Any:
        """Return the model as the run had it, untrained."""
        return adapted(self.base, bias="all")

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """Return an AdamW of other settings over the same groups."""
        live = dict(model.named_parameters())
        return torch.optim.AdamW([{"params": [live[name] for name in names]} for names in self.groups], lr=1.0)


@dataclass(frozen=True)
class Row:
    """One program that reads one layout."""

    to: str
    reader: str
    """For the page."""
    slots: tuple[str, ...]
    """What it takes, bit for bit."""
    load: Callable[[Stopped, Path], Found] | str
    """Returns what it holds then, of the folder in which the export lies; a name: what the program of several processes calls it."""
    by: Literal["itself", "retyped"] = "itself"
    """Whether the program ran, or its loading as we retyped it."""
    package: str | None = None
    """What it needs beside the test extra."""
    names: str = "all"
    """Which of the parameters it takes."""


def held(optimizer: torch.optim.Optimizer, model: Any) -> Found:
    """Return an optimizer's state by the names of its model."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: dict(entry) for parameter, entry in optimizer.state.items()}


def by_torch(run: Stopped, folder: Path) -> Found:
    model = run.model()
    optimizer = run.optimizer(model)
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    return held(optimizer, model)


def by_trainer(run: Stopped, folder: Path) -> Found:
    from .test_optim_list import AtTheStart

    checkpoint = folder / run.checkpoint.name
    shutil.copytree(run.checkpoint, checkpoint)
    shutil.copy(folder / "optimizer.pt", checkpoint / "optimizer.pt")
    again = trainer(folder / "run", run.model())
    again.add_callback(begin := AtTheStart())
    again.train(resume_from_checkpoint=str(checkpoint))
    return begin.seen


def by_accelerate(run: Stopped, folder: Path) -> Found:
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), run.model()
    optimizer = run.optimizer(model)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.save_state(str(folder / "saved"))
    shutil.copy(folder / "optimizer.bin", folder / "saved" / "optimizer.bin")
    accelerator.load_state(str(folder / "saved"))
    return held(optimizer.optimizer, model)


def by_less(run: Stopped, folder: Path) -> Found:
    model = run.model()
    first, second = less_moments(folder / "optimizer.bin", model)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    cut = [torch.split(one, [shape.numel() for shape in shapes.values()]) for one in (first, second)]
    return {name: {"exp_avg": m.view(shape), "exp_avg_sq": v.view(shape)} for (name, shape), m, v in zip(shapes.items(), *cut)}


def _parameter(module: str) -> str:
    return f"base_model.{module}.weight"


def by_bergson_retyped(run: Stopped, folder: Path) -> Found:
    return {_parameter(module): {"exp_avg_sq": v} for module, v in bergson_normalizers(folder / "optimizer.pt", run.model()).items()}


def by_bergson(run: Stopped, folder: Path) -> Found:
    from bergson.utils.load_from_optimizer import load_from_optimizer

    found = load_from_optimizer(run.model(), str(folder / "optimizer.pt"))
    return {_parameter(module): {"exp_avg_sq": one.weight_avg_sq} for module, one in found.items()}


def by_dattri_retyped(run: Stopped, folder: Path) -> Found:
    model = run.model()
    return held(dattri_optimizer(model, folder / "folder"), model)


def by_dattri(run: Stopped, folder: Path) -> Found:
    from dattri_llm.gradient.optimizer_state import optimizer_from_state_dict

    model = run.model()
    state = torch.load(folder / "folder" / "optimizer.pt", weights_only=True)
    names = json.loads((folder / "folder" / "param_names.json").read_text())
    return held(optimizer_from_state_dict(model, state, names), model)


def by_ota(run: Stopped, folder: Path) -> Found:
    state = ostate.load(run.named)
    return {
        name: {"exp_avg_sq": ota_preconditioner(folder / "exp_avg_sq.safetensors", p.adapter_key or name, p.shape)}
        for name, p in state.parameters.items()
    }


def by_names(run: Stopped, folder: Path) -> Found:
    """RL_Practice utils/model_loader.py: the lists beside optimizer.pt, group by group, give each position its parameter."""
    saved = torch.load(run.checkpoint / "optimizer.pt", weights_only=True)
    names = json.loads((folder / "optimizer_param_names.json").read_text())
    return {name: saved["state"][p] for group, own in zip(saved["param_groups"], names) for p, name in zip(group["params"], own)}


def by_fill(run: Stopped, folder: Path) -> Found:
    from ostate.probe import fill

    model = run.model()
    optimizer = run.optimizer(model)
    fill(optimizer, model, ostate.load(folder / "state.ostate.safetensors"), strict=True)
    return held(optimizer, model)


def by_hf_storage(run: Stopped, folder: Path) -> Found:
    import torch.distributed.checkpoint as dcp

    (folder / "alone").mkdir()
    shutil.copy(folder / "state.ostate.safetensors", folder / "alone")
    state = ostate.load(run.named)
    wanted = {f"state.{name}.{slot}": torch.empty(p.shape) for name, p in state.parameters.items() for slot in p.slots}
    dcp.load(wanted, storage_reader=dcp.HuggingFaceStorageReader(str(folder / "alone")), no_dist=True)
    return {name: {slot: wanted[f"state.{name}.{slot}"] for slot in p.slots} for name, p in state.parameters.items()}


def by_safetensors(run: Stopped, folder: Path) -> Found:
    from safetensors.torch import load_file

    found: Found = {}
    for key, tensor in load_file(folder / "state.ostate.safetensors").items():
        name, _, slot = key.removeprefix("state.").rpartition(".")
        found.setdefault(name, {})[slot] = tensor
    return found


ROWS = (
    Row("torch", "`torch.optim.AdamW.load_state_dict`", EVERYTHING, by_torch),
    Row("torch", "Trainer, `resume_from_checkpoint`", EVERYTHING, by_trainer),
    Row("accelerate", "`Accelerator.load_state`", EVERYTHING, by_accelerate),
    Row("dcp", "FSDP2 on two processes, `set_optimizer_state_dict`", EVERYTHING, "by_name"),
    Row("dcp", "Accelerate's `load_fsdp_optimizer` on two processes", EVERYTHING, "accelerates"),
    Row("dcp-flat", "torchtitan: FSDP2 with a flattened state dict", EVERYTHING, "flattened", "retyped"),
    Row("dcp-flat", "NeMo Automodel's `OptimizerState`, with a scheduler", EVERYTHING, "automodels", package="nemo_automodel"),
    Row("dcp-positions", "NeMo Automodel's `OptimizerState`, a quantised model", EVERYTHING, "automodels_quantised", package="nemo_automodel"),
    Row("dcp-positions", "`optimizer.state_dict()`, FSDP2 on two processes", EVERYTHING, "by_position"),
    Row("less", "FSDP2 on two processes, a full state dict from rank 0", EVERYTHING, "full"),
    Row("less", "LESS", BOTH, by_less, "retyped"),
    Row("bergson", "bergson's `load_from_optimizer`", ("exp_avg_sq",), by_bergson, package="bergson", names="weights of two axes"),
    Row("bergson", "bergson, without its package", ("exp_avg_sq",), by_bergson_retyped, "retyped", names="weights of two axes"),
    Row("dattri", "dattri-llm's `optimizer_from_state_dict`", EVERYTHING, by_dattri, package="dattri_llm"),
    Row("dattri", "dattri-llm, without its package", EVERYTHING, by_dattri_retyped, "retyped"),
    Row("ota", "OTA-merge", ("exp_avg_sq",), by_ota, "retyped"),
    Row("names", "RL_Practice, beside the run's own optimizer.pt", EVERYTHING, by_names, "retyped"),
    Row("ostate", "`ostate.probe.fill`", EVERYTHING, by_fill),
    Row("ostate", "torch's `HuggingFaceStorageReader`", BOTH, by_hf_storage),
    Row("ostate", "safetensors", EVERYTHING, by_safetensors),
)
FURTHER = (("deepspeed-universal", "DeepSpeed's engine: ZeRO 1 on one process, ZeRO 2 and 3 on two", "exp_avg, exp_avg_sq, step, weights"),)
"""Held by tests of their own: `test_deepspeed.py`."""


def table() -> str:
    """Return the table as Markdown."""
    lines = ["| `--to` | read by | arrives bit for bit | tried with |", "|---|---|---|---|"]
    for row in ROWS:
        slots = ", ".join(row.slots) + ("" if row.names == "all" else f" of {row.names}")
        lines.append(f"| `{row.to}` | {row.reader} | {slots} | {'the program' if row.by == 'itself' else 'its code, retyped'} |")
    lines += [f"| `{to}` | {reader} | {slots} | the program |" for to, reader, slots in FURTHER]
    return "\n".join(lines) + "\n"


def renewed(page: str) -> str:
    """Return the page with its table replaced."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
