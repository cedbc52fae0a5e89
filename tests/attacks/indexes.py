"""Ways to do harm through the index of torch.distributed.checkpoint, and through what lies beside it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

NAME = "optimizer.state.a.exp_avg"
INSPECT = ["inspect", "dcp"]


def size(*sizes: int) -> torch.Size:
    """A shape that no tensor has to have."""
    return torch.Size(sizes)


def tensor(shape: torch.Size, chunks: list[tuple[torch.Size, torch.Size]]) -> TensorStorageMetadata:
    return TensorStorageMetadata(TensorProperties(torch.float32), shape, [ChunkStorageMetadata(at, sizes) for at, sizes in chunks])


def written(folder: Path, stored: object) -> list[str]:
    """Write the index and a sound blob."""
    (folder / "dcp").mkdir()
    (folder / "dcp" / ".metadata").write_bytes(stored if isinstance(stored, bytes) else pickle.dumps(stored))
    torch.save(torch.ones(2), folder / "dcp" / "__0_0.distcp")
    return INSPECT


def metadata(shape: Any, chunks: Any, *, file: str = "__0_0.distcp", offset: Any = 0, length: Any = 400) -> Metadata:
    """An index of one tensor."""
    places = {MetadataIndex(NAME, at, None): _StorageInfo(file, offset, length) for at, _ in chunks}
    return Metadata({NAME: tensor(shape, chunks), "optimizer.param_groups.a.lr": BytesStorageMetadata()}, None, places)


WHOLE = [(size(0), size(2))]


def one(shape: Any = None, chunks: Any = None, **more: Any) -> Callable[[Path], list[str]]:
    return lambda folder: written(folder, metadata(size(2) if shape is None else shape, WHOLE if chunks is None else chunks, **more))


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def harm_as_index(folder: Path) -> list[str]:
    return written(folder, pickle.dumps(_Harm()) + b".exp_avg_sq")


def harm_within(folder: Path) -> list[str]:
    stored = metadata(size(2), WHOLE)
    stored.planner_data = {"a": _Harm()}
    return written(folder, stored)


def harm_as_object(folder: Path) -> list[str]:
    """A hyperparameter's blob that runs code."""
    out = written(folder, b"")
    torch.save(_Harm(), folder / "dcp" / "__1_0.distcp")
    torch.save(torch.ones(2), folder / "dcp" / "__0_0.distcp")
    length = (folder / "dcp" / "__0_0.distcp").stat().st_size
    stored = metadata(size(2), WHOLE, length=length)
    key = "optimizer.param_groups.a.lr"
    stored.storage_data[MetadataIndex(key)] = _StorageInfo("__1_0.distcp", 0, (folder / "dcp" / "__1_0.distcp").stat().st_size)
    (folder / "dcp" / ".metadata").write_bytes(pickle.dumps(stored))
    return out


def no_list_as_offset(folder: Path) -> list[str]:
    """Found by the fuzzer: an offset that is a name."""
    stored = metadata(size(2), WHOLE)
    (index,) = stored.storage_data
    object.__setattr__(index, "offset", torch.float32)
    return written(folder, stored)


def loop_of_links(folder: Path) -> list[str]:
    """A folder that holds itself."""
    (folder / "dcp").mkdir()
    (folder / "dcp" / "again").symlink_to(folder / "dcp")
    return INSPECT


def link_to_nothing(folder: Path) -> list[str]:
    (folder / "dcp").mkdir()
    (folder / "dcp" / "optimizer.pt").symlink_to(folder / "gone")
    return INSPECT


def metadata_is_a_folder(folder: Path) -> list[str]:
    (folder / "dcp" / ".metadata").mkdir(parents=True)
    return INSPECT


def link_to_a_secret(folder: Path) -> list[str]:
    (folder / "dcp").mkdir()
    (folder / "secret").write_text("swordfish .exp_avg_sq param_groups")
    (folder / "dcp" / ".metadata").symlink_to(folder / "secret")
    return INSPECT


def output_is_a_link_to_the_input(folder: Path) -> list[str]:
    from tests.attacks.headers import REPAIR, checkpoint

    checkpoint(folder)
    (folder / "out.safetensors").symlink_to(folder / "optimizer.pt")
    return [*REPAIR, "--force"]


def columns(count: int) -> list[tuple[torch.Size, torch.Size]]:
    """One column a chunk: every pair of them must be compared."""
    return [(size(0, at), size(2, 1)) for at in range(count)]


def bars(count: int) -> list[tuple[torch.Size, torch.Size]]:
    """Blocks in steps, none over another."""
    return [(size(at % 2, at), size(1, 1)) for at in range(count)] + [(size(1 - at % 2, at), size(1, 1)) for at in range(count)]


LONG: dict[str, Callable[[Path], list[str]]] = {
    "metadata: thirty thousand columns": lambda folder: written(folder, metadata(size(2, 30_000), columns(30_000))),
    "metadata: forty thousand blocks": lambda folder: written(folder, metadata(size(2, 20_000), bars(20_000))),
}
"""The same as some of `REFUSED` at full size."""
REFUSED: dict[str, Callable[[Path], list[str]]] = {
    "metadata: reduce to os.system": harm_as_index,
    "metadata: reduce to os.system within": harm_within,
    "metadata: a hyperparameter that runs code": harm_as_object,
    "metadata: an offset that is not a list": no_list_as_offset,
    "metadata: no index": lambda folder: written(folder, pickle.dumps({"param_groups": 1})),
    "metadata: cut short": lambda folder: written(folder, pickle.dumps(metadata(size(2), WHOLE))[:-20]),
    "metadata: a memo bomb": lambda folder: written(folder, b"\x80\x02K\x01r\xff\xff\xff\x7f.exp_avg."),
    "metadata: two million keys": lambda folder: written(
        folder, b"\x80\x02}(" + b"".join(b"J" + key.to_bytes(4, "little") + b"N" for key in range(250_000)) * 8 + b"u.exp_avg"
    ),
    "metadata: lists half a million deep": lambda folder: written(folder, b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b".exp_avg"),
    "metadata: a file above": one(file="../secret"),
    "metadata: a file above, with backslashes": one(file="..\\secret"),
    "metadata: an absolute file": one(file="/etc/passwd"),
    "metadata: a file that is missing": one(file="__9_9.distcp"),
    "metadata: a file with terminal escapes": one(file="\x1b[2J\x1b]0;owned\x07"),
    "metadata: a file with a zero byte": one(file="a\0b"),
    "metadata: a file of a million letters": one(file="a" * 1_000_000),
    "metadata: a folder as file": one(file="."),
    "metadata: a negative offset": one(offset=-1),
    "metadata: an offset outside the file": one(offset=1 << 60),
    "metadata: a length of eight exabytes": one(length=(1 << 63) - 1),
    "metadata: a length that is text": one(length="4"),
    "metadata: a shape of 10^36": one(size((1 << 60), (1 << 60)), [(size(0, 0), size(1 << 60, 1 << 60))]),
    "metadata: a shape that no chunk fills": one(size(4)),
    "metadata: chunks over each other": one(size(2), [(size(0), size(1)), (size(0), size(1))]),
    "metadata: a chunk outside": one(size(2), [(size(1), size(2))]),
    "metadata: a chunk of other axes": one(size(2), [(size(0, 0), size(2, 1))]),
    "metadata: five thousand columns": one(size(2, 5_000), columns(5_000)),
    "metadata: eight thousand blocks": one(size(2, 4_000), bars(4_000)),
    "link: a folder within itself": loop_of_links,
    "link: to nothing": link_to_nothing,
    "link: to a secret": link_to_a_secret,
    "link: the output is the input": output_is_a_link_to_the_input,
    "a folder in place of the index": metadata_is_a_folder,
}
