"""Ways to do harm through the archive around the pickle."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from tests.read.archives import Tensor, Writer, saved, state_of

FLOATS = b"\0\0\x80\x3f" * 4


def sound(folder: Path) -> Path:
    """An archive with nothing wrong."""
    return saved(folder / "optimizer.pt", state_of(Tensor("0", (2, 2))), {"0": FLOATS, "1": FLOATS})


def patched(change: Callable[[bytearray], None]) -> Callable[[Path], Path]:
    """A sound archive with some bytes changed."""

    def make(folder: Path) -> Path:
        path = sound(folder)
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)
        return path

    return make


def central(data: bytearray, name: bytes) -> int:
    """Return where the central directory's record of `name` begins."""
    at = data.rindex(name) - 46
    assert data[at : at + 4] == b"PK\1\2"
    return at


def end(data: bytearray) -> int:
    """Return where the end record begins."""
    return data.rindex(b"PK\5\6")


def field(at: int, form: str, value: int) -> Callable[[bytearray], None]:
    """Change a field of the record of the first storage."""
    return lambda data: struct.pack_into(form, data, central(data, b"archive/data/0") + at, value)


def end_field(at: int, form: str, value: int) -> Callable[[bytearray], None]:
    """Change a field of the end record."""
    return lambda data: struct.pack_into(form, data, end(data) + at, value)


def swap_headers(data: bytearray) -> None:
    """Let the records of two storages point at each other's data."""
    first, second = central(data, b"archive/data/0") + 42, central(data, b"archive/data/1") + 42
    data[first : first + 4], data[second : second + 4] = data[second : second + 4], data[first : first + 4]


def one_place(data: bytearray) -> None:
    """Let the records of two storages point at one place."""
    first, second = central(data, b"archive/data/0") + 42, central(data, b"archive/data/1") + 42
    data[second : second + 4] = data[first : first + 4]


def local_name(data: bytearray) -> None:
    """Give a member another name in its own header."""
    at = data.index(b"archive/data/0")
    data[at : at + 14] = b"archive/data/9"


def local_method(data: bytearray) -> None:
    """Say in the member's own header that it is compressed."""
    struct.pack_into("<H", data, data.index(b"archive/data/0") - 30 + 8, 8)


def local_size(size: int) -> Callable[[bytearray], None]:
    """Give a member another size in its own header."""
    return lambda data: struct.pack_into("<I", data, data.index(b"archive/data/0") - 30 + 22, size)


def over_the_next(folder: Path) -> Path:
    """Torch's own archive, whose members' own headers tell no size: one reaches over its neighbour."""
    path = folder / "optimizer.pt"
    torch.save({"state": {0: {"exp_avg": torch.ones(64), "exp_avg_sq": torch.ones(64)}}, "param_groups": [{"params": [0]}]}, path)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\1\2", 0, data.rindex(b"/data/0"))
    for offset in (20, 24):
        struct.pack_into("<I", data, at + offset, 256 + 128)
    path.write_bytes(data)
    return path


def local_length(data: bytearray) -> None:
    """Let the name in the member's own header be longer."""
    struct.pack_into("<H", data, data.index(b"archive/data/0") - 30 + 26, 4000)


def compressed(folder: Path) -> Path:
    """A zip bomb: a hundred megabytes of zeros in a hundred kilobytes."""
    with zipfile.ZipFile(folder / "optimizer.pt", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("archive/data.pkl", Writer().dump(state_of(Tensor("0", (5000, 5000)))))
        out.writestr("archive/data/0", b"\0" * 100_000_000)
    return folder / "optimizer.pt"


def members(*names: str) -> Callable[[Path], Path]:
    """An archive with members of these names."""

    def make(folder: Path) -> Path:
        path = sound(folder)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as out:
            for name in names:
                out.writestr(zipfile.ZipInfo(name), FLOATS)
        return path

    return make


def twice(name: str) -> Callable[[Path], Path]:
    """An archive that lists a member twice."""

    def make(folder: Path) -> Path:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return members(name)(folder)

    return make


def two_pickles(folder: Path) -> Path:
    """Two archives in one: which pickle is meant?"""
    with zipfile.ZipFile(folder / "optimizer.pt", "w") as out:
        out.writestr("a/data.pkl", Writer().dump({}))
        out.writestr("b/data.pkl", Writer().dump({}))
    return folder / "optimizer.pt"


def many_members(folder: Path) -> Path:
    """An end record that counts four billion members."""
    path = sound(folder)
    data = bytearray(path.read_bytes())
    at = end(data)
    where = at
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 32, 1 << 32, 1 << 40, 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, where, 1)
    path.write_bytes(bytes(data[:at]) + record + locator + bytes(data[at:]))
    return path


def unsigned_zip64(folder: Path) -> Path:
    """A zip64 record without its signature."""
    path = many_members(folder)
    path.write_bytes(path.read_bytes().replace(b"PK\6\6", b"PK\6\5"))
    return path


def huge_directory(folder: Path) -> Path:
    """A directory of the size of the whole sparse file."""
    path = folder / "optimizer.pt"
    size = 8 << 30
    with path.open("wb") as out:
        out.write(b"PK\3\4")
        out.seek(size)
        out.write(struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 24, 1 << 24, size, 0))
        out.write(struct.pack("<4sIQI", b"PK\6\7", 0, size, 1))
        out.write(struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    return path


def huge_pickle(folder: Path) -> Path:
    """A pickle of five gigabytes, sparse."""
    path = folder / "optimizer.pt"
    name, size = b"a/data.pkl", 5 << 30
    with path.open("wb") as out:
        out.write(struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 45, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, len(name), 20) + name)
        out.write(struct.pack("<HHQQ", 1, 16, size, size))
        out.seek(size, 1)
        at = out.tell()
        extra = struct.pack("<HHQQ", 1, 16, size, size)
        lengths = (0xFFFFFFFF, 0xFFFFFFFF, len(name), len(extra))
        out.write(struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 45, 45, 0, 0, 0, 0, 0, *lengths, 0, 0, 0, 0, 0) + name + extra)
        length = out.tell() - at
        out.write(struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, length, at) + struct.pack("<4sIQI", b"PK\6\7", 0, at + length, 1))
        out.write(struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, length, 0xFFFFFFFF, 0))
    return path


ATTACKS: dict[str, Callable[[Path], Path]] = {
    "zip bomb": compressed,
    "method says compressed": patched(field(10, "<H", 8)),
    "encrypted flag": patched(field(8, "<H", 1)),
    "strong encryption flag": patched(field(8, "<H", 0x40)),
    "packed size differs": patched(field(20, "<I", 7)),
    "size past the end": patched(lambda data: (field(20, "<I", 1 << 30)(data), field(24, "<I", 1 << 30)(data))),
    "size over its neighbour": patched(lambda data: (field(20, "<I", 200)(data), field(24, "<I", 200)(data))),
    "sizes of zip64 that are not there": patched(lambda data: (field(20, "<I", 0xFFFFFFFF)(data), field(24, "<I", 0xFFFFFFFF)(data))),
    "header past the end": patched(field(42, "<I", 1 << 30)),
    "header within another member": patched(field(42, "<I", 3)),
    "header in the directory": patched(lambda data: field(42, "<I", central(data, b"archive/data/0"))(data)),
    "two records for one place": patched(one_place),
    "records that point at each other's data": patched(swap_headers),
    "another name in the local header": patched(local_name),
    "another method in the local header": patched(local_method),
    "another length in the local header": patched(local_length),
    "another size in the local header": patched(local_size(7)),
    "no size in the local header": patched(local_size(0)),
    "size over its neighbour in torch's own archive": over_the_next,
    "no signature in the directory": patched(field(0, "<I", 0)),
    "name longer than the directory": patched(field(28, "<H", 60000)),
    "directory past the end": patched(end_field(16, "<I", 1 << 30)),
    "directory larger than the file": patched(end_field(12, "<I", 1 << 30)),
    "fewer members than listed": patched(lambda data: (end_field(8, "<H", 2)(data), end_field(10, "<H", 2)(data))),
    "more members than listed": patched(lambda data: (end_field(8, "<H", 9)(data), end_field(10, "<H", 9)(data))),
    "several disks": patched(end_field(4, "<H", 3)),
    "four billion members": many_members,
    "a zip64 record without its signature": unsigned_zip64,
    "a directory of eight gigabytes": huge_directory,
    "a pickle of five gigabytes": huge_pickle,
    "a member with an absolute name": members("/etc/cron.d/x"),
    "a member that leads out": members("archive/data/../../../x"),
    "a member that leads out the Windows way": members("archive\\..\\..\\x"),
    "a member without a name": members(""),
    "a member twice": twice("archive/data/0"),
    "the pickle twice": twice("archive/data.pkl"),
    "two pickles": two_pickles,
    "a byte order that is none": lambda folder: saved(
        folder / "optimizer.pt", state_of(Tensor("0", (2, 2))), {"0": FLOATS}, byteorder=b"middle"
    ),
    "a byte order of a megabyte": lambda folder: saved(
        folder / "optimizer.pt", state_of(Tensor("0", (2, 2))), {"0": FLOATS}, byteorder=b"l" * (1 << 20)
    ),
    "cut in the middle": lambda folder: _cut(sound(folder), 0.5),
    "cut by one byte": lambda folder: _cut(sound(folder), -1),
    "nothing but the end record": lambda folder: _write(folder, struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)),
    "a thousand end records": lambda folder: _write(folder, b"PK\3\4" + b"PK\5\6" * 20_000),
}  # fmt: skip


def _cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share) if share > 0 else int(share)])
    return path


def _write(folder: Path, data: bytes) -> Path:
    (folder / "optimizer.pt").write_bytes(data)
    return folder / "optimizer.pt"
