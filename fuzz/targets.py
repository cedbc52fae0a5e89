"""What is fuzzed: each target takes bytes, and reads them or refuses. Anything but an `OstateError` is a finding."""

from __future__ import annotations

import contextlib
import json
import os
import pickle as pickle_module
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fuzz.values import Choices, damaged
from ostate import store
from ostate.commands.inspect import inspect
from ostate.commands.repair import repair
from ostate.core.safetensors import read_head
from ostate.errors import OstateError
from ostate.read.adapters import read_adapter
from ostate.read.container import dcp_index
from ostate.read.container.torchsave import load
from ostate.read.container.zip import ZipIndex
from ostate.read.layouts import dcp
from ostate.read.pickle.globals import TORCH_GLOBALS, unpickle
from ostate.read.pickle.torch_tensors import REBUILD, asked_storage
from ostate.store import header, validating

ROOM = Path(tempfile.mkdtemp(prefix="ostate-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
CHECKPOINT = Path(__file__).parent.parent / "tests" / "cases" / "one-process" / "llama_qv" / "checkpoint-5"
DISTRIBUTED = Path(__file__).parent.parent / "tests" / "cases" / "distributed"
DCP = tuple(DISTRIBUTED / name for name in ("fsdp2_dcp", "fsdp2_dcp_intids"))
ZERO = tuple(DISTRIBUTED / name for name in ("ds_z2", "ds_z2_rr", "ds_z3"))
ALLOWED = {**TORCH_GLOBALS, **REBUILD}
BLOB = Path(__file__).parent / "corpus" / "made" / "blob"
"""A tensor of two numbers as torch.save writes it, made by `fuzz/seeds.py`."""
TENSORS = [header.Tensor("state.a.exp_avg", "F32", (2,), 0), header.Tensor("state.a.exp_avg_sq", "F32", (2,), 8)]


def placed(name: str, data: bytes) -> str:
    """Write the bytes where every run finds them, and return the path."""
    path = ROOM / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return str(path)


def pickle(data: bytes) -> None:
    """The pickle machine, with torch's persistent ids answered by themselves."""
    unpickle(data, where="fuzz", persistent=asked_storage, allowed=ALLOWED)


def zip_index(data: bytes) -> None:
    """The directory of a zip, then the whole archive as torch.save writes it, either format."""
    path = placed("optimizer.pt", data)
    with contextlib.suppress(OstateError):
        ZipIndex(path)
    load(path)


def dcp_metadata(data: bytes) -> None:
    """The index of torch.distributed.checkpoint; every file that it may name is there."""
    placed("dcp/.metadata", data)
    for name in ("__0_0.distcp", "__1_0.distcp"):
        if not (ROOM / "dcp" / name).exists():
            placed(f"dcp/{name}", (BLOB.read_bytes() if BLOB.exists() else b"").ljust(1 << 20, b"\0"))
    folder = str(ROOM / "dcp")
    dcp.detect(folder)
    index = dcp_index.read_index(folder)
    for found in dcp.optimizers_of(index.items.values()).values():
        for leaves in found.state.values():
            for item in leaves.values():
                dcp_index.tensor(item)
    dcp.read(folder)


def safetensors(data: bytes) -> None:
    """The header of a safetensors file, as weights and as our own files."""
    path = placed("weights.safetensors", data)
    with contextlib.suppress(OstateError):
        read_head(path)
    with contextlib.suppress(OstateError):
        read_adapter(path)
    header.read(path)


def manifest(data: bytes) -> None:
    """The manifest within a sound safetensors file: loaded, and validated."""
    path = placed("named.safetensors", header.pack(TENSORS, data.decode("utf-8", "replace")) + bytes(16))
    validating.validate(path, deep=True)
    state = store.load(path)
    for name, parameter in state.parameters.items():
        state.hyper(name)
        for slot in parameter.slots.values():
            slot.read()


def adapter_config(data: bytes) -> None:
    """adapter_config.json beside sound weights."""
    if not (ROOM / "adapter" / "adapter_model.safetensors").exists():
        key = "base_model.model.layers.0.q_proj.lora_A.weight"
        placed("adapter/adapter_model.safetensors", header.pack([header.Tensor(key, "F32", (2,), 0)], json.dumps({})) + bytes(8))
    placed("adapter/adapter_config.json", data)
    read_adapter(str(ROOM / "adapter"))


SMALL_FILES = ("adapter_config.json", "optimizer_param_names.json", "trainer_state.json", "config.json", "README.md", "latest")
"""What is read beside a state, in the order in which the parts of an input lie in them."""
PART = b"\n--8<--\n"


def beside_a_state(data: bytes) -> None:
    """The small files of a real checkpoint, all at once: a part of the input for each, an empty part for none. Nothing is written."""
    folder = ROOM / "checkpoint-5"
    for name in ("optimizer.pt", "adapter_model.safetensors"):
        if not (folder / name).exists():
            placed(f"checkpoint-5/{name}", (CHECKPOINT / name).read_bytes())
    parts = data.split(PART)
    for name, part in zip(SMALL_FILES, [*parts, *[b""] * len(SMALL_FILES)]):
        (folder / name).unlink(missing_ok=True)
        if part:
            placed(f"checkpoint-5/{name}", part)
    with contextlib.suppress(OstateError):
        inspect(str(folder), adapter=str(folder))
    repair(str(folder), None)


@cache
def stored(path: Path) -> Any:
    """Return what lies in a real file, as the program that wrote it loads it."""
    return pickle_module.loads(path.read_bytes()) if path.name == ".metadata" else torch.load(path, weights_only=False)


def dcp_values(data: bytes) -> None:
    """The index of a real distributed checkpoint with some of its values changed, beside the files that it names."""
    choices = Choices(data)
    case = DCP[choices.below(len(DCP))]
    folder = ROOM / f"values-{case.name}"
    _stand_in(case, folder)
    try:
        text = pickle_module.dumps(damaged(stored(case / ".metadata"), choices))
    except (TypeError, AttributeError, ValueError, RuntimeError):  # no pickle holds it
        return
    (folder / ".metadata").write_bytes(text)
    read_and_name(folder)


def zero(data: bytes) -> None:
    """A rank's file of a real DeepSpeed run with some of its values changed, beside those of the other ranks."""
    choices = Choices(data)
    case = ZERO[choices.below(len(ZERO))]
    folder = ROOM / f"values-{case.name}"
    _stand_in(case, folder)
    files = sorted(case.rglob("*_states.pt"))
    file = files[choices.below(len(files))]
    target = folder / file.relative_to(case)
    try:
        torch.save(damaged(stored(file), choices), target)
    except (TypeError, AttributeError, ValueError, RuntimeError):  # no file holds it
        return
    read_and_name(folder)
    target.write_bytes(file.read_bytes())


def _stand_in(case: Path, folder: Path) -> None:
    if not folder.exists():
        shutil.copytree(case, folder)


def read_and_name(folder: Path) -> None:
    """Look at a checkpoint with all its numbers, and settle its names; nothing is written."""
    with contextlib.suppress(OstateError):
        inspect(str(folder), values=True)
    repair(str(folder), None)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "pickle": pickle,
    "zip": zip_index,
    "dcp": dcp_metadata,
    "safetensors": safetensors,
    "manifest": manifest,
    "config": adapter_config,
    "beside": beside_a_state,
    "dcp_values": dcp_values,
    "zero": zero,
}
