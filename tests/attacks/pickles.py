"""Ways to do harm through a pickle. Each is a torch.save archive whose `data.pkl` is the attack."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

from tests.read.archives import Call, Global, Writer, archive, saved

MARK = "touch {}/pwned"
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ"


def call(name: str, *args: object, **more: object) -> Callable[[Path], Path]:
    """An archive whose state is a call of `name`."""

    def make(folder: Path) -> Path:
        filled = (one.format(folder) if isinstance(one, str) else one for one in args)
        return saved(folder / "optimizer.pt", {"state": Call(name, *filled, **more), "param_groups": []})

    return make


def raw(body: bytes, protocol: int = 2) -> Callable[[Path], Path]:
    """An archive whose pickle is these opcodes."""
    return lambda folder: archive(folder / "optimizer.pt", b"\x80" + bytes((protocol,)) + body + b".")


def instance(folder: Path) -> Path:
    """INST: the call that Python 2 wrote in one opcode."""
    return archive(folder / "optimizer.pt", f"(S'{MARK.format(folder)}'\nios\nsystem\n.".encode())


def obj(folder: Path) -> Path:
    """OBJ: the same with the class on the stack."""
    return archive(folder / "optimizer.pt", b"(cos\nsystem\nX" + struct.pack("<I", len(MARK.format(folder))) + MARK.format(folder).encode() + b"o.")


def real_reduce(folder: Path) -> Path:
    """What `pickle.dumps` writes for an object with a hostile `__reduce__`, saved by torch itself."""
    import torch

    class Harm:
        def __reduce__(self):
            return os.system, (MARK.format(folder),)

    torch.save({"state": {0: Harm()}, "param_groups": []}, folder / "optimizer.pt")
    return folder / "optimizer.pt"


def legacy(folder: Path) -> Path:
    """The same in the format before torch 1.6."""
    import torch

    class Harm:
        def __reduce__(self):
            return os.system, (MARK.format(folder),)

    torch.save({"state": {0: Harm()}, "param_groups": []}, folder / "optimizer.pt", _use_new_zipfile_serialization=False)
    return folder / "optimizer.pt"


def persistent_within_persistent(folder: Path) -> Path:
    """A persistent id that is itself a storage."""
    return archive(folder / "optimizer.pt", b"\x80\x02" + STORAGE + b"Q.", {"0": b"\0" * 4})


def build_on_storage(folder: Path) -> Path:
    """BUILD on a storage: move it to another file."""
    return archive(folder / "optimizer.pt", b"\x80\x02" + STORAGE + b"N}X\x04\0\0\0fileX\x0b\0\0\0/etc/passwds\x86b.", {"0": b"\0" * 4})


def build_on_tensor(folder: Path) -> Path:
    """BUILD on a tensor: give it other parts, here a file of the system."""
    writer = Writer()
    from tests.read.archives import Tensor

    writer.add(Tensor("0", (1,)))
    writer.add((None, {"parts": (("/etc/passwd", 0, (40,), (1,), (0,)),)}))
    return archive(folder / "optimizer.pt", bytes(writer.out) + b"b.", {"0": b"\0" * 4})


def build_on_function(folder: Path) -> Path:
    """BUILD on the function behind a global: change its defaults for the next file."""
    writer = Writer()
    writer.add(Global("torch._utils._rebuild_tensor_v2"))
    writer.add((None, {"__defaults__": (1, 2, 3)}))
    return archive(folder / "optimizer.pt", bytes(writer.out) + b"b.")


def build_on_class(folder: Path) -> Path:
    """BUILD on a class."""
    writer = Writer()
    writer.add(Global("argparse.Namespace"))
    writer.add((None, {"__setstate__": Global("os.path")}))
    return archive(folder / "optimizer.pt", bytes(writer.out) + b"b.")


def tuples_in_tuples(folder: Path) -> Path:
    """A key of a hundred thousand tuples within tuples: hashing it recurses in C."""
    return archive(folder / "optimizer.pt", b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.")


def doubling_key(folder: Path) -> Path:
    """A key that doubles sixty times: hashing it never ends."""
    body = b"\x80\x02})" + b"".join(b"r" + struct.pack("<I", at) + b"j" + struct.pack("<I", at) + b"\x86" for at in range(60)) + b"Ns."
    return archive(folder / "optimizer.pt", body)


def doubling_value(folder: Path) -> Path:
    """A value that doubles sixty times: walking it never ends."""
    body = b"".join(b"r" + struct.pack("<I", at) + b"j" + struct.pack("<I", at) + b"\x86" for at in range(60))
    return archive(folder / "optimizer.pt", b"\x80\x02}X\x01\0\0\0a](K\x01e" + body + b"s.")


def doubling_hyper(folder: Path) -> Path:
    """The same as a hyperparameter of a state that is sound."""
    places = [struct.pack("<I", at) for at in range(60)]
    body = b"](K\x01e" + b"".join(b"r" + place + b"]j" + place + b"aj" + place + b"a" for place in places)
    head = b"\x80\x02}(X\x05\0\0\0state}X\x0c\0\0\0param_groups]}(X\x06\0\0\0params]X\x02\0\0\0lr"
    return archive(folder / "optimizer.pt", head + body + b"uau.")


def within_itself(folder: Path) -> Path:
    """A list within itself, and a mapping within itself."""
    return archive(folder / "optimizer.pt", b"\x80\x02}q\0(X\x01\0\0\0a]q\1h\1aX\x01\0\0\0bh\0X\x05\0\0\0stateh\0X\x0c\0\0\0param_groupsh\1u.")


def ten_million_keys(folder: Path) -> Path:
    """Ten million keys: sixty megabytes that would take more than a gigabyte."""
    body = b"\x80\x02}(" + b"".join(b"J" + struct.pack("<i", key) + b"N" for key in range(1_000_000)) * 10 + b"u."
    return archive(folder / "optimizer.pt", body)


def a_million_marks(folder: Path) -> Path:
    """A million MARKs: each a list to Python's machine."""
    return archive(folder / "optimizer.pt", b"\x80\x02" + b"(" * 1_000_000 + b".")


def a_million(opcode: bytes, before: bytes = b"") -> Callable[[Path], Path]:
    """Four million times one opcode that costs much more than a byte."""
    return lambda folder: archive(folder / "optimizer.pt", b"\x80\x04" + before + opcode * 4_000_000 + b".")


ATTACKS: dict[str, Callable[[Path], Path]] = {
    "reduce to os.system": call("os.system", MARK),
    "reduce to posix.system": call("posix.system", MARK),
    "reduce to subprocess.Popen": call("subprocess.Popen", MARK),
    "reduce to eval": call("builtins.eval", "__import__('os').system('" + MARK + "')"),
    "reduce to exec of Python 2": call("__builtin__.exec", "raise SystemExit"),
    "reduce to getattr": call("builtins.getattr", Global("builtins.dict"), "__class__"),
    "reduce to __import__": call("builtins.__import__", "os"),
    "reduce to open": call("builtins.open", "{}/pwned", "w"),
    "reduce to importlib": call("importlib.import_module", "this"),
    "reduce to apply": call("operator.methodcaller", "system"),
    "reduce to torch.load": call("torch.serialization.load", "{}/optimizer.pt"),
    "reduce to bytes inside bytes": call("torch.storage._load_from_bytes", b"\x80\x02}."),
    "reduce to a function of numpy": call("numpy.testing._private.utils.runstring", "1", {}),
    "reduce to a dotted name": call("torch._utils._rebuild_tensor_v2.__globals__", 1),
    "reduce to pip": call("pip.main", ["install", "x"]),
    "new object of an unknown class": call("collections.UserDict", new=True),
    "bytearray of a terabyte": call("builtins.bytearray", 1 << 40),
    "a list of a range": call("builtins.list", Call("builtins.range", 1 << 40)),
    "a torch.Size that is not a size": call("torch.Size", "x" * 100),
    "a name with terminal escapes": call("os.\x1b[2J\x1b]0;owned\x07", 1),
    "a name of a million letters": call("os." + "a" * 1_000_000, 1),
    "an object's own reduce, saved by torch": real_reduce,
    "an object's own reduce, saved in the old format": legacy,
    "INST": instance,
    "OBJ": obj,
    "EXT1": raw(b"\x82\x01"),
    "EXT4": raw(b"\x84\x01\0\0\0"),
    "out-of-band buffer": raw(b"\x97", 5),
    "a persistent id of text": raw(b"Pid\n"),
    "a persistent id within a persistent id": persistent_within_persistent,
    "BUILD on a storage": build_on_storage,
    "BUILD on a tensor": build_on_tensor,
    "BUILD on a function": build_on_function,
    "BUILD on a class": build_on_class,
    "BUILD on a number": raw(b"K\x01}b"),
    "a call of a number": raw(b"K\x01)R"),
    "a call with a list": raw(b"ccollections\nOrderedDict\n]R"),
    "a call with keywords that are none": raw(b"ccollections\nOrderedDict\n)K\x01\x92", 4),
    "a global of numbers": raw(b"K\x01K\x02\x93", 4),
    "memo bomb": raw(b"K\x01r\xff\xff\xff\x7f]", 2),
    "memo numbers twice": raw(b"K\x01q\0K\x02q\0\x86"),
    "a length of two gigabytes": raw(b"X\xff\xff\xff\x7fabc"),
    "a length of eight exabytes": raw(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc", 4),
    "a frame of eight exabytes": raw(b"\x95\xff\xff\xff\xff\xff\xff\xff\x7fN", 4),
    "an integer of a megabyte": raw(b"\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20)),
    "an integer of a million digits": raw(b"L" + b"9" * 1_000_000 + b"L\n"),
    "a key of nested tuples": tuples_in_tuples,
    "a key that doubles": doubling_key,
    "a value that doubles": doubling_value,
    "a hyperparameter that doubles": doubling_hyper,
    "a list within itself": within_itself,
    "lists nested half a million deep": raw(b"]" * 500_000 + b"a" * 499_999),
    "dictionaries nested half a million deep": raw(b"}K\0" * 500_000 + b"}" + b"s" * 500_000),
    "a list as a key": raw(b"}]Ns"),
    "ten million keys": ten_million_keys,
    "a million marks": a_million_marks,
    "four million sets": a_million(b"\x8f"),
    "four million lists": a_million(b"]"),
    "four million memo numbers": a_million(b"\x94", b"N"),
    "four million tuples": a_million(b"\x85", b"N"),
    "four million copies": a_million(b"2", b"N"),
    "an unknown opcode": raw(b"\xff"),
    "no STOP": lambda folder: archive(folder / "optimizer.pt", b"\x80\x02N"),
    "an empty pickle": lambda folder: archive(folder / "optimizer.pt", b""),
    "text that is not text": raw(b"X\x02\0\0\0\xff\xfe"),
    "a lone surrogate": raw(b"X\x03\0\0\0\xed\xa0\x80"),
}  # fmt: skip
