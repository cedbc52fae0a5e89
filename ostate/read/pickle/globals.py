"""Unpickling without running anything: which globals a file may name, and what stands in for each.

A row of `TORCH_GLOBALS` is all it takes to know a new class: `RECORD` keeps name, arguments and state as an `Inert`, a function builds plain
data from the arguments, anything else is the value itself. A name without a row is an `UnsafePickle` that says the name.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from ostate.errors import OstateError, ReadError, UnsafePickle

from .machine import Machine
from .numpy_values import NUMPY_CODES, decode_scalar, filled_array, from_buffer, numpy_dtype, plain_scalar
from .opcodes import run
from .records import RECORD, Array, Inert, Named, Refusal, check_keys, whole_numbers
from .torch_tensors import STORAGES
from .unknown_classes import PermissiveTable

__all__ = ["RECORD", "TORCH_GLOBALS", "Array", "Inert", "Named", "unpickle", "unpickle_at"]

MOST_BYTES = 1 << 28
"""Bytes of a pickle: the metadata of 70 billion parameters on 512 ranks."""

ENDS_EARLY = "the pickle ends early"
FastPath = Callable[[Machine, int], int]

DTYPES: dict[str, str] = {
    "torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2", "torch.float8_e4m3fnuz": "F8_E4M3FNUZ",
    "torch.float8_e5m2fnuz": "F8_E5M2FNUZ", "torch.float8_e8m0fnu": "F8_E8M0",
    "torch.int64": "I64", "torch.int32": "I32", "torch.int16": "I16", "torch.int8": "I8",
    "torch.uint64": "U64", "torch.uint32": "U32", "torch.uint16": "U16", "torch.uint8": "U8", "torch.bool": "BOOL",
    "torch.complex64": "C64",
}  # fmt: skip
"""torch's dtypes as safetensors' tags (torch/serialization.py, safetensors dtype table)."""


def unpickle(
    data: bytes,
    *,
    where: str,
    persistent: Callable[[object], object] | None = None,
    allowed: Mapping[str, object] | None = None,
    fast_paths: tuple[str, Sequence[FastPath]] | None = None,
) -> object:
    """Return what one whole pickle holds, as plain data.

    Args:
        data: the pickle.
        where: file and place, for messages.
        persistent: answers a persistent id.
        allowed: full name of a global -> what stands in for it.
        fast_paths: a global's full name, and what reads a call of it in one go (`Machine.fast_path`); the next is tried where one left out what the
            pickle refers to later.

    Raises:
        UnsafePickle: a global without a row in `allowed`, or a call, key or opcode that plain data never needs.
        ReadError: the pickle is damaged.
    """
    function, ways = fast_paths or ("", ())
    for fast_path in ways:
        try:
            return _run(data, 0, where, persistent, allowed, (function, fast_path))[0]
        except KeyError:  # a reference to what was leapt over
            continue
    return unpickle_at(data, 0, where=where, persistent=persistent, allowed=allowed)[0]


def unpickle_at(
    data: bytes,
    at: int,
    *,
    where: str,
    persistent: Callable[[object], object] | None = None,
    allowed: Mapping[str, object] | None = None,
) -> tuple[object, int]:
    """Return what the pickle that starts at `at` holds, and the position after it.

    Raises:
        UnsafePickle: as `unpickle`.
        ReadError: as `unpickle`.
    """
    try:
        return _run(data, at, where, persistent, allowed, None)
    except KeyError as error:
        raise ReadError("the pickle is damaged: it refers to an object that it does not contain", where=where, fix="copy the file again") from error


def _run(
    data: bytes,
    at: int,
    where: str,
    persistent: Callable[[object], object] | None,
    allowed: Mapping[str, object] | None,
    fast_paths: tuple[str, FastPath] | None,
) -> tuple[object, int]:
    """Run the machine; every known failure but a KeyError becomes a `ReadError` here, and nowhere else."""
    if len(data) > MOST_BYTES:
        raise ReadError(f"the pickle is {len(data) >> 20} MB long", where=where, fix="no optimizer state has such a pickle; it is not read")
    table = TORCH_GLOBALS if allowed is None else allowed
    known: dict[str, object] = {}

    def find(module: str, name: str) -> object:
        full = f"{module}.{name}"
        if full not in known:
            known[full] = _global(full, table, where)
            if fast_paths is not None and full == fast_paths[0]:
                machine.before = known[full]
        return known[full]

    machine = Machine(data, find, persistent or _no_persistent_id, _build)
    if fast_paths is not None:
        machine.fast_path = fast_paths[1]
    try:
        return run(machine, at)
    except OstateError as error:
        if not error.where:
            error.at(where)
        raise
    except Refusal as error:
        raise UnsafePickle(str(error), where=where, fix="the file is damaged or malicious: do not use it") from error
    except IndexError as error:
        raise ReadError(ENDS_EARLY, where=where, fix="the copy is incomplete: copy it again") from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        raise ReadError(f"the pickle is damaged: {type(error).__name__}", where=where, fix="copy the file again") from error


def _global(full: str, allowed: Mapping[str, object], where: str) -> object:
    row = allowed.get(full) or allowed.get(f"{full.rpartition('.')[0]}.*")
    if row is None and isinstance(allowed, PermissiveTable):
        row = allowed.unknown_class(full)
    if row is None:
        shown = full if full.isprintable() and len(full) < 200 else ascii(full[:200])
        raise UnsafePickle(
            f"the file refers to {shown}, which no optimizer state uses",
            where=where,
            fix="save the optimizer's state_dict() alone; if this class is harmless, add a row to ostate/read/pickle/globals.py",
        )
    if row is RECORD:
        return Named(full, lambda *args, **kwargs: Inert(full, args, kwargs))
    return Named(full, row) if callable(row) else row


def _no_persistent_id(_: object) -> NoReturn:
    raise Refusal("a persistent id in a pickle that has no storages")


def _build(target: object, state: object) -> object:
    """Answer BUILD: fill an inert record; attributes of an OrderedDict (`_metadata`) are dropped."""
    if type(target) is Inert:
        target.state = _merged(state)
    elif type(target) is Array:
        filled_array(target, state)
    elif type(target) is not dict:
        raise Refusal(f"a state for a {type(target).__name__}")
    return target


def _merged(state: object) -> object:
    """Return one mapping for the pair (attributes, slots) that classes with `__slots__` write."""
    if type(state) is tuple and len(state) == 2 and all(part is None or type(part) is dict for part in state):
        return {**(state[0] or {}), **(state[1] or {})}
    return state


# What stands in for a function that a file may name. Each takes what the file passes and returns plain data.
def _ordered(items: object = ()) -> dict[object, object]:
    return _pairs(items)


def _default_dict(_factory: object = None, items: object = ()) -> dict[object, object]:
    return _pairs(items)


def _pairs(items: object) -> dict[object, object]:
    pairs = list(items.items()) if type(items) is dict else [_pair(one) for one in _several(items)]
    check_keys([key for key, _ in pairs])
    return dict(pairs)


def _pair(item: object) -> tuple[object, object]:
    if not isinstance(item, (list, tuple)) or len(item) != 2:
        raise TypeError("a key and its value wanted")
    return item[0], item[1]


def _several(items: object) -> list[object]:
    if not isinstance(items, (list, tuple, set, frozenset)):
        raise TypeError("several items wanted")
    return list(items)


def _set(items: object = ()) -> set[object]:
    listed = _several(items)
    check_keys(listed)
    return set(listed)


def _frozen(items: object = ()) -> frozenset[object]:
    return frozenset(_set(items))


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """`_codecs.encode`: how protocol 2 writes bytes."""
    if encoding not in {"latin1", "latin-1"}:
        raise Refusal(f"text encoded as {encoding!r}")
    return text.encode("latin-1")


def _bytes(raw: object = b"", encoding: str = "latin1") -> bytes:
    """`bytes` and `bytearray`: never of a number, which would ask for that many."""
    return raw if type(raw) is bytes else _encode(_text(raw), encoding)


def _text(value: object) -> str:
    if type(value) is not str:
        raise TypeError("text wanted")
    return value


def _device(kind: object, index: int | None = None) -> str:
    return _text(kind) if index is None else f"{_text(kind)}:{int(index)}"


def _path(*parts: object) -> str:
    return "/".join(map(_text, parts)).replace("//", "/")


def _reconstruct(cls: object, _base: object = None, state: object = None) -> Inert:
    """`copyreg._reconstructor`: an object of protocol 0 and 1."""
    return Inert(_class_name(cls), () if state is None else (state,))


def _first(value: object, *_: object) -> object:
    return value


def _typed(rebuild: Named, kind: object, args: tuple[object, ...], state: object) -> object:
    """`torch._tensor._rebuild_from_type_v2`: a tensor with attributes, or a subclass that wraps other tensors."""
    made = rebuild.call(*args)
    if type(made) is Inert:
        made.state = _merged(state)
        return made
    if _class_name(kind) in _PLAIN_TENSORS:
        return made
    return Inert(_class_name(kind), (made,), state=_merged(state))


def _wrapper(kind: object, dtype: object, size: object, stride: object, *_: object) -> Inert:
    """`torch._utils._rebuild_wrapper_subclass`: no data of its own; the inner tensors follow as its state."""
    return Inert(_class_name(kind), kwargs={"dtype": dtype, "shape": whole_numbers(size), "stride": whole_numbers(stride)})


def _class_name(kind: object) -> str:
    if type(kind) is not Named:
        raise TypeError("a class wanted")
    return kind.name


_PLAIN_TENSORS = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}

_RECORDS = [
    *_PLAIN_TENSORS,
    *(f"torch.{name}" for name in STORAGES),
    *(f"torch.storage.{name}" for name in (*STORAGES, "TypedStorage")),
    *(f"torch._utils._rebuild_{kind}" for kind in ("qtensor", "sparse_tensor", "sparse_csr_tensor", "nested_tensor")),
    "typing.Any", "builtins.object", "__builtin__.object", "numpy.ndarray", "argparse.Namespace", "types.SimpleNamespace", "torch.Generator",
    "deepspeed.runtime.zero.config.ZeroStageEnum", "deepspeed.utils.tensor_fragment.fragment_address",
    *(f"{package}.AttributeDict" for package in (
        "lightning.fabric.utilities.data", "lightning_fabric.utilities.data", "lightning.pytorch.utilities.parsing",
        "pytorch_lightning.utilities.parsing",
    )),
]  # fmt: skip
"""Classes that are kept as they are written: one name a row."""

_RECORDED_PACKAGES = [
    *(f"torch.distributed.checkpoint.{package}" for package in ("metadata", "filesystem", "_fsspec_filesystem")),
    "torch.distributed._shard.sharded_tensor.metadata", "torch.distributed.device_mesh", "torch.distributed._mesh_layout",
    "torch.distributed._pycute.layout", "torch._C._distributed",
    *(f"torch.distributed.{package}" for package in (
        "tensor", "tensor._api", "tensor._dtensor_spec", "tensor.placement_types", "_tensor", "_tensor.api", "_tensor.placement_types",
    )),
    *(f"torch.optim.{package}" for package in (
        "optimizer", "adam", "adamw", "adamax", "nadam", "radam", "sgd", "asgd", "rmsprop", "rprop", "adagrad", "adadelta", "sparse_adam",
        "_adafactor", "_muon", "lbfgs",
    )),
    *(f"torchao.{name}.subclass_{kind}" for name in ("optim", "optim.low_bit_optim", "prototype.low_bit_optim") for kind in ("8bit", "4bit", "fp8")),
    "deepspeed.runtime.fp16.loss_scaler",
    "galore_torch.galore_projector", "galore_torch.galore_projector_tensor", "apollo_torch.random_projector", "apollo_torch.svd_projector",
    "torch.torch_version", "datetime", "uuid", "decimal", "omegaconf.dictconfig", "omegaconf.listconfig", "omegaconf.base", "omegaconf.nodes",
    "transformers.training_args", "transformers.trainer_utils", "transformers.trainer_pt_utils", "accelerate.state", "accelerate.utils.dataclasses",
]  # fmt: skip
"""Modules whose classes are all kept so: they hold data, and their names change from release to release."""

TORCH_GLOBALS: dict[str, object] = {
    **dict.fromkeys(_RECORDS, RECORD),
    **dict.fromkeys((f"{package}.*" for package in _RECORDED_PACKAGES), RECORD),
    **DTYPES,
    **{name: name for name in (
        "torch.complex128", "torch.complex32", "torch.qint8", "torch.quint8", "torch.qint32", "torch.strided", "torch.sparse_coo",
        "torch.preserve_format", "torch.contiguous_format", "torch.channels_last", "torch.per_tensor_affine", "torch.float4_e2m1fn_x2",
    )},
    "collections.deque": lambda items=(), _most=None: list(items), "functools.partial": RECORD,
    "collections.OrderedDict": _ordered, "collections.defaultdict": _default_dict, "collections.Counter": _ordered,
    "builtins.dict": _ordered, "builtins.set": _set, "__builtin__.set": _set, "builtins.list": list, "builtins.tuple": tuple,
    "builtins.frozenset": _frozen, "__builtin__.frozenset": _frozen, "__builtin__.dict": _ordered, "__builtin__.list": list,
    "builtins.int": int, "builtins.float": float, "builtins.bool": bool, "builtins.bytearray": _bytes, "builtins.bytes": _bytes,
    "builtins.complex": complex, "__builtin__.complex": complex, "__builtin__.bytearray": _bytes, "__builtin__.bytes": _bytes,
    "_codecs.encode": _encode, "copyreg._reconstructor": _reconstruct, "copy_reg._reconstructor": _reconstruct,
    "torch.Size": lambda sizes=(): tuple(sizes), "torch.device": _device, "torch.serialization._get_layout": _text,
    "torch._utils._rebuild_parameter": _first, "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _typed, "torch._tensor._rebuild_from_type": lambda rebuild, kind, args, state:
        _typed(rebuild, kind, args, state),
    "torch._utils._rebuild_wrapper_subclass": _wrapper,
    **{f"{package}.{name}": _path for package in ("pathlib", "pathlib._local")
       for name in ("Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath", "PureWindowsPath")},
    "numpy.dtype": numpy_dtype, **{f"numpy.{name}": plain_scalar for name in NUMPY_CODES},
    "numpy.dtypes.Float64DType": lambda: numpy_dtype("f8"), "numpy.dtypes.Int64DType": lambda: numpy_dtype("i8"),
    **{f"numpy.{package}.multiarray.scalar": decode_scalar for package in ("core", "_core")},
    **{f"numpy.{package}.multiarray._reconstruct": lambda *_: Array() for package in ("core", "_core")},
    **{f"numpy.{package}.numeric._frombuffer": from_buffer for package in ("core", "_core")},
}  # fmt: skip
"""Full name of a global -> what stands in for it."""
