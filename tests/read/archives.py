"""torch.save archives put together byte by byte, so that a test can put anything into them."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Tensor:
    """Pickles as torch pickles a tensor: a call of `_rebuild_tensor_v2` on a storage of the archive."""

    def __init__(
        self, key: str, shape: tuple[Any, ...], stride: tuple[Any, ...] | None = None, offset: Any = 0, kind: str = "FloatStorage", count: Any = None
    ):
        self.key, self.shape, self.offset, self.kind = key, shape, offset, kind
        self.stride = tuple(_product(shape[axis + 1 :]) for axis in range(len(shape))) if stride is None else stride
        self.count = _product(shape) if count is None else count


def _product(sizes: tuple[Any, ...]) -> Any:
    out = 1
    for size in sizes:
        out *= size
    return out


class Call:
    """Pickles as a call of any global, by name."""

    def __init__(self, name: str, *args: Any, state: Any = None, new: bool = False):
        self.name, self.args, self.state, self.new = name, args, state, new


class Global:
    """Pickles as a global that is not called."""

    def __init__(self, name: str):
        self.name = name


class Writer:
    """Writes plain data, `Tensor` and `Call` as protocol 2, like torch's pickler but without its checks."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")

    def dump(self, value: Any) -> bytes:
        self.add(value)
        return bytes(self.out) + b"."

    def name(self, full: str) -> None:
        module, _, name = full.rpartition(".")
        self.out += b"c" + module.encode() + b"\n" + name.encode() + b"\n"

    def add(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.name("torch._utils._rebuild_tensor_v2")
            self.out += b"(("
            self.add("storage")
            self.name(f"torch.{value.kind}")
            for part in (value.key, "cpu", value.count):
                self.add(part)
            self.out += b"tQ"
            for part in (value.offset, tuple(value.shape), tuple(value.stride), False, Call("collections.OrderedDict")):
                self.add(part)
            self.out += b"tR"
        elif isinstance(value, Global):
            self.name(value.name)
        elif isinstance(value, Call):
            self.name(value.name)
            self.add(tuple(value.args))
            self.out += b"\x81" if value.new else b"R"
            if value.state is not None:
                self.add(value.state)
                self.out += b"b"
        elif isinstance(value, dict):
            self.out += b"}("
            for key, item in value.items():
                self.add(key)
                self.add(item)
            self.out += b"u"
        elif isinstance(value, list):
            self.out += b"]("
            for item in value:
                self.add(item)
            self.out += b"e"
        elif isinstance(value, tuple):
            self.out += b"("
            for item in value:
                self.add(item)
            self.out += b"t"
        elif isinstance(value, float):
            self.out += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            raw = value.encode()
            self.out += b"X" + struct.pack("<I", len(raw)) + raw
        elif isinstance(value, bytes):
            self.out += b"B" + struct.pack("<I", len(value)) + value
        elif value is None or isinstance(value, bool):
            self.out += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        else:
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.out += b"\x8a" + bytes((len(raw),)) + raw


def state_of(exp_avg_sq: Any, **group: Any) -> dict[str, Any]:
    """Return a state dict of one parameter."""
    return {"state": {0: {"exp_avg_sq": exp_avg_sq}}, "param_groups": [{"lr": 1e-3, "params": [0], **group}]}


def archive(path: Path, data: bytes, storages: Mapping[str, bytes] | None = None, **more: bytes) -> Path:
    """Write a zip as torch.save lays it out: the pickle, the storages, `byteorder`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as out:
        out.writestr("archive/data.pkl", data)
        for key, raw in (storages or {}).items():
            out.writestr(f"archive/data/{key}", raw)
        for name, raw in more.items():
            out.writestr(f"archive/{name}", raw)
    return path


def saved(path: Path, value: Any, storages: Mapping[str, bytes] | None = None, **more: bytes) -> Path:
    """Write `value`, with `Tensor` leaves over `storages`, as a torch.save archive."""
    return archive(path, Writer().dump(value), storages, **more)
