"""What is fuzzed: each target takes bytes, and reads them or refuses. Anything but an `OstateError` is a finding."""

from __future__ import annotations

import contextlib
import os
import pickle as pickle_module
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fuzz.structured import PART
from fuzz.values import Choices, damaged
from ostate import store
from ostate.commands.inspect import inspect
from ostate.commands.repair import repair
from ostate.core.safetensors import read_head
from ostate.core.tensors import ITEMSIZE
from ostate.errors import OstateError
from ostate.evidence.methods import silent_reason, starts_of, units_of
from ostate.read.adapters import read_adapter
from ostate.read.container import dcp_index
from ostate.read.container.torchsave import load
from ostate.read.container.zip import Member, ZipIndex
from ostate.read.layouts import dcp
from ostate.read.pickle.globals import TORCH_GLOBALS, unpickle
from ostate.read.pickle.torch_tensors import REBUILD, REBUILD_V2, Storage, asked_storage, fast_path_of
from ostate.store import header, validating

ROOM = Path(tempfile.mkdtemp(prefix="ostate-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
CHECKPOINT = Path(__file__).parent.parent / "tests" / "cases" / "one-process" / "llama_qv" / "checkpoint-5"
DISTRIBUTED = Path(__file__).parent.parent / "tests" / "cases" / "distributed"
DCP = tuple(DISTRIBUTED / name for name in ("fsdp2_dcp", "fsdp2_dcp_intids"))
ZERO = tuple(DISTRIBUTED / name for name in ("ds_z2", "ds_z2_rr", "ds_z3"))
ALLOWED = {**TORCH_GLOBALS, **REBUILD}
LARGE = 1 << 24
NOT_KEPT = ("memo number is used twice", "an object that it does not contain")
"""What is not seen in a tensor's record that is read as a whole: its memo numbers are not kept, and its location is not looked up."""
MEMBERS: dict[str, Member] = {f"data/{number}": (0, LARGE, 0) for number in range(1000)}
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
    """The pickle machine, every storage there and large enough; tensors read a record at a time and an opcode at a time are the same."""
    ways = [fast_path_of("fuzz", "data/", MEMBERS, swapped=False, crc=False, remember=remember) for remember in (False, True)]  # of one pickle
    both = []
    for quick in ((REBUILD_V2, ways), None):
        try:
            both.append(repr(unpickle(data, where="fuzz", persistent=_storage, allowed=ALLOWED, fast_paths=quick)))
        except OstateError as error:
            both.append(error)
    if isinstance(both[1], OstateError) and (isinstance(both[0], OstateError) or any(word in both[1].what for word in NOT_KEPT)):
        raise both[1]
    assert both[0] == both[1], both


def _storage(asked: Any) -> Storage:
    kind, key, count = asked_storage(asked)
    if f"data/{key}" not in MEMBERS or not 0 <= count * ITEMSIZE[kind] <= LARGE:
        raise OstateError("no such storage", where="fuzz", fix="none")
    return Storage("fuzz", 0, LARGE, kind, None, False)


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
    """adapter_config.json beside the weights of a real adapter: what is tested of them, and from where they started."""
    if not (ROOM / "adapter" / "adapter_model.safetensors").exists():
        placed("adapter/adapter_model.safetensors", (CHECKPOINT / "adapter_model.safetensors").read_bytes())
    placed("adapter/adapter_config.json", data)
    adapter = read_adapter(str(ROOM / "adapter"))
    units_of(adapter)
    starts_of(adapter)
    silent_reason(adapter)


SMALL_FILES = ("adapter_config.json", "optimizer_param_names.json", "trainer_state.json", "config.json", "README.md", "latest")
"""What is read beside a state, in the order in which the parts of an input lie in them."""


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
