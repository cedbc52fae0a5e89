"""Tensors that reach where they should not."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.read.archives import Call, Global, Tensor, archive, saved, state_of

HOOKS = Call("collections.OrderedDict")


def tensor(*args: object, **more: object) -> Callable[[Path], Path]:
    """A state of one tensor over a storage of sixteen bytes."""
    return lambda folder: saved(folder / "optimizer.pt", state_of(Tensor("0", *args, **more)), STORED)


def rebuilt(*args: object, function: str = "torch._utils._rebuild_tensor_v2") -> Callable[[Path], Path]:
    """A call of torch's function with arguments of any kind."""
    return lambda folder: saved(folder / "optimizer.pt", state_of(Call(function, *args)), STORED)


STORED = {"0": b"\0" * 16}
TYPED = "torch._tensor._rebuild_from_type_v2"
V3 = "torch._utils._rebuild_tensor_v3"


def whole(value: object, storages: dict[str, bytes] | None = None) -> Callable[[Path], Path]:
    """A state whose only slot is `value`."""
    return lambda folder: saved(folder / "optimizer.pt", state_of(value), storages)


def torchs_own(before: bytes, after: bytes) -> Callable[[Path], Path]:
    """A file that torch wrote, its last tensor's record changed: the form that is read in one match."""

    def make(folder: Path) -> Path:
        import torch

        torch.save({"state": {i: {"exp_avg_sq": torch.zeros(2, 3)} for i in range(3)}, "param_groups": [{"params": [0, 1, 2]}]}, folder / "x.pt")
        with zipfile.ZipFile(folder / "x.pt") as file:
            data = file.read("x/data.pkl")
            storages = {name[len("x/data/") :]: file.read(name) for name in file.namelist() if name.startswith("x/data/")}
        head, found, tail = data.rpartition(before)
        assert found
        return archive(folder / "optimizer.pt", head + after + tail, storages)

    return make


ATTACKS: dict[str, Callable[[Path], Path]] = {
    "a shape larger than the storage": tensor((5,)),
    "a shape of an exabyte": tensor((1 << 60,), count=4),
    "a shape that overflows 64 bits": tensor((1 << 40, 1 << 40), count=4),
    "a shape of numbers of a hundred bytes": tensor((1 << 800,), count=4),
    "a stride that leaves the storage": tensor((2, 2), (3, 1)),
    "a stride of an exabyte": tensor((2,), (1 << 60,), count=4),
    "a negative stride": tensor((2,), (-1,), count=4),
    "a negative size": tensor((-2,), (1,), count=4),
    "two negative sizes": tensor((-2, -2), (2, 1), count=4),
    "an offset past the end": tensor((2,), offset=3),
    "a negative offset": tensor((2,), offset=-1),
    "an offset that is not a number": tensor((2,), offset="1"),
    "a size that is not a number": tensor((2.0,), (1,), count=4),
    "a size that is a truth": tensor((True,), (1,), count=4),
    "fewer strides than sizes": tensor((2, 2), (1,)),
    "more elements than the storage": tensor((2,), count=1 << 40),
    "a negative count": tensor((2,), count=-4),
    "a storage that is not there": whole(Tensor("7", (2,)), STORED),
    "a storage named as a path": whole(Tensor("../../../etc/passwd", (2,)), STORED),
    "a storage that is a pickle": whole(Tensor("../data.pkl", (2,)), STORED),
    "a storage class that is none": tensor((2,), kind="nn.Linear"),
    "a storage of numbers that no optimizer keeps": tensor((2,), kind="ComplexDoubleStorage"),
    "a storage that is a number": rebuilt(7, 0, (2,), (1,), False, HOOKS),
    "a storage that is a list": rebuilt([1, 2], 0, (2,), (1,), False, HOOKS),
    "too few arguments": rebuilt(1),
    "too many arguments": rebuilt(*range(20)),
    "a dtype that is a class": whole(Call(V3, 1, 0, (2,), (1,), False, HOOKS, Global("torch.nn.parameter.Parameter"))),
    "a dtype that is a text": rebuilt(1, 0, (2,), (1,), False, HOOKS, "F99", function=V3),
    "a wrapper around nothing": rebuilt(Global("torch._utils._rebuild_wrapper_subclass"), 1, (1, 2), {}, function=TYPED),
    "a wrapper that calls os.system": rebuilt(Global("os.system"), Global("torch.Tensor"), ("true",), {}, function=TYPED),
    "a type that wraps itself": rebuilt(
        Global(TYPED), Global("torch.Tensor"), (Global("torch.Tensor"),) * 4, {}, function=TYPED
    ),
    "a larger shape in torch's own record": torchs_own(b"K\x02K\x03\x86", b"K\x02K\x04\x86"),
    "a stride too far in torch's own record": torchs_own(b"K\x03K\x01\x86", b"K\x04K\x01\x86"),
    "an offset too far in torch's own record": torchs_own(b"QK\0K\x02", b"QK\x01K\x02"),
    "a negative offset in torch's own record": torchs_own(b"QK\0K\x02", b"QJ\xff\xff\xff\xffK\x02"),
    "a negative stride in torch's own record": torchs_own(b"K\x03K\x01\x86", b"K\x03J\xff\xff\xff\xff\x86"),
    "a storage too small for torch's own record": torchs_own(b"K\x06tq", b"K\x07tq"),
    "a storage missing from torch's own record": torchs_own(b"X\1\0\0\x002", b"X\1\0\0\x009"),
    "fewer strides in torch's own record": torchs_own(b"K\x03K\x01\x86", b"K\x01\x85"),
    "another count of sizes in torch's own record": torchs_own(b"K\x02K\x03\x86", b"K\x02K\x03\x87"),
    "a numpy array larger than its bytes": lambda folder: whole(_array((1 << 40,), b"\0" * 8))(folder),
    "a numpy array of negative size": lambda folder: whole(_array((-1, -8), b"\0" * 64))(folder),
    "a numpy scalar of the wrong length": lambda folder: whole(Call("numpy._core.multiarray.scalar", _dtype("f8"), b"\0"))(folder),
    "a numpy scalar whose type is a text": whole(Call("numpy._core.multiarray.scalar", "f8", b"\0" * 8)),
}  # fmt: skip


def _dtype(code: str) -> Call:
    return Call("numpy.dtype", code, False, True, state=(3, "<", None, None, None, -1, -1, 0))


def _array(shape: tuple[int, ...], raw: bytes) -> Call:
    return Call("numpy._core.multiarray._reconstruct", Global("numpy.ndarray"), (0,), b"b", state=(1, shape, _dtype("f8"), False, raw))
