"""The data that travels through ostate: frozen, lazy, without torch.

Words (DESIGN section 3): *position* is the integer id in the file, *slot* a per-parameter tensor such as `exp_avg_sq`,
*name* the live `named_parameters()` name, *key* the adapter file's key. numpy is imported only where numbers are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .errors import ReadError
from .files import read_at

if TYPE_CHECKING:
    import numpy as np

Severity = Literal["note", "warning", "error"]
Hyper = Mapping[str, Any]

ITEMSIZE: dict[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F8_E8M0": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8,
}  # fmt: skip
"""Bytes an element, by safetensors' dtype tag."""

_NUMPY = {
    "F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U64": "u8", "U32": "u4",
    "U16": "u2", "U8": "u1", "BOOL": "?", "C64": "c8",
}  # fmt: skip
_FLOAT8 = {  # exponent bits, mantissa bits, bias, has infinities, unsigned zero only (OCP 8-bit float specification; fnuz: arXiv 2206.02915)
    "F8_E4M3": (4, 3, 7, "nan-only"), "F8_E5M2": (5, 2, 15, "ieee"), "F8_E4M3FNUZ": (4, 3, 8, "fnuz"), "F8_E5M2FNUZ": (5, 2, 16, "fnuz"),
}  # fmt: skip

CHUNK = 1 << 18
"""Elements read at a time: 1 MB of float32, which stays in a core's cache."""


class Slot(Protocol):
    """One tensor of a parameter's state, not yet read. `dtype` is what `read` gives in safetensors' words, F32 for anything packed."""

    @property
    def encoding(self) -> str:
        """`plain`, or the row of `formats.encodings.DECODERS` that packs it."""

    @property
    def dtype(self) -> str:
        """The stored dtype of a plain slot; F32 for a packed one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape."""

    def read(self) -> np.ndarray:
        """Return the values: float32 (float64 for F64), the logical shape."""

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield the values flat, in C order, a bounded number at a time."""

    def with_shape(self, shape: tuple[int, ...]) -> Slot:
        """Return the same numbers under another shape of the same number of elements."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a tensor in a file: a strided view of `sizes` that lies at `starts` in the whole.

    A part whose `starts` has one entry addresses the flattened tensor, whatever the tensor's rank.
    """

    file: str
    offset: int
    """Bytes from the start of the file to the first element."""
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    starts: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        """True when the elements lie in C order without holes."""
        wanted = 1
        for size, stride in zip(reversed(self.sizes), reversed(self.strides)):
            if size != 1 and stride != wanted:
                return False
            wanted *= size
        return True


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A stored tensor: where its bytes lie. Nothing is read until someone asks. Satisfies `Slot`."""

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    swapped: bool = False
    """True when the file is big-endian."""
    crc32: int | None = None
    """CRC32 of exactly these bytes, where the file's own directory records it."""

    @property
    def encoding(self) -> str:
        """Always `plain`."""
        return "plain"

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a 0-d tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values as stored."""
        return self.numel * ITEMSIZE[self.dtype]

    @property
    def run(self) -> tuple[str, int] | None:
        """(file, offset) when the tensor is one run of bytes in C order and in this machine's order, else None."""
        part = self.parts[0] if len(self.parts) == 1 else None
        if part is None or self.swapped or not part.contiguous or math.prod(part.sizes) != self.numel:
            return None
        return part.file, part.offset

    def with_shape(self, shape: tuple[int, ...]) -> TensorRef:
        """Return the same numbers under another shape of the same number of elements."""
        if shape == self.shape:
            return self
        if math.prod(shape) != self.numel:
            raise ReadError(f"{self.numel} elements cannot take the shape {shape}")
        return replace(self, shape=shape, parts=tuple(_flat_parts(self)))

    def read(self) -> np.ndarray:
        """Return the values in the logical shape: float32 for float16, bfloat16 and 8-bit floats, else the stored type."""
        import numpy as np

        if len(self.parts) == 1 and math.prod(self.parts[0].sizes) == self.numel:
            return _read_part(self, self.parts[0]).reshape(self.shape)
        flat = all(len(part.starts) == 1 for part in self.parts)
        out: np.ndarray | None = None
        for part in self.parts:
            values = _read_part(self, part)
            if out is None:
                out = np.zeros((self.numel,) if flat else self.shape, values.dtype)
            out[tuple(slice(at, at + size) for at, size in zip(part.starts, part.sizes))] = values
        if out is None:
            out = np.zeros(self.shape, np.float32)
        return out.reshape(self.shape)

    def chunks(self, elements: int = CHUNK) -> Iterator[np.ndarray]:
        """Yield the values flat, in C order, at most `elements` at a time where the layout allows it."""
        try:
            runs = _flat_parts(self)
        except ReadError:
            flat = self.read().reshape(-1)
            for at in range(0, flat.size, elements):
                yield flat[at : at + elements]
            return
        size = ITEMSIZE[self.dtype]
        for part in sorted(runs, key=lambda run: run.starts):
            for at in range(0, part.sizes[0], elements):
                count = min(elements, part.sizes[0] - at)
                yield decode_numbers(read_at(part.file, part.offset + at * size, count * size), self.dtype, self.swapped)

    def item(self) -> float:
        """Return the only element as a Python number, without numpy.

        Raises:
            ReadError: more than one element.
        """
        if self.numel != 1:
            raise ReadError(f"one element wanted, the tensor has shape {self.shape}")
        import struct

        part = self.parts[0]
        raw = read_at(part.file, part.offset, ITEMSIZE[self.dtype])
        order = ">" if self.swapped else "<"
        if self.dtype == "BF16":
            raw = raw + b"\0\0" if self.swapped else b"\0\0" + raw
            return float(struct.unpack(order + "f", raw)[0])
        code = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "I8": "b", "U8": "B", "BOOL": "?"}.get(self.dtype)
        if code is None:
            raise ReadError(f"a number of type {self.dtype} is not expected here", where=part.file)
        value = struct.unpack(order + code, raw)[0]
        return float(value)


def _flat_parts(ref: TensorRef) -> list[Part]:
    """Return the parts as runs of the flattened tensor.

    Raises:
        ReadError: a part is not a run (a column shard, a transposed view).
    """
    runs = []
    for part in ref.parts:
        if not part.contiguous:
            raise ReadError("the tensor is not stored in C order", where=part.file)
        if len(part.starts) == 1:
            start = part.starts[0]
        elif part.sizes[1:] == ref.shape[1:]:
            start = part.starts[0] * math.prod(ref.shape[1:]) if part.starts else 0
        else:
            raise ReadError("the part does not span whole rows", where=part.file)
        runs.append(replace(part, sizes=(math.prod(part.sizes),), strides=(1,), starts=(start,)))
    return runs


def _read_part(ref: TensorRef, part: Part) -> np.ndarray:
    import numpy as np

    size = ITEMSIZE[ref.dtype]
    count = math.prod(part.sizes)
    if part.contiguous or count == 0:
        return decode_numbers(read_at(part.file, part.offset, count * size), ref.dtype, ref.swapped).reshape(part.sizes)
    span = 1 + sum((length - 1) * stride for length, stride in zip(part.sizes, part.strides))
    values = decode_numbers(read_at(part.file, part.offset, span * size), ref.dtype, ref.swapped)
    steps = tuple(stride * values.itemsize for stride in part.strides)
    return np.lib.stride_tricks.as_strided(values, part.sizes, steps).copy()


def decode_numbers(raw: bytes, dtype: str, swapped: bool = False) -> np.ndarray:
    """Return the flat numbers that `raw` holds: float32 for float16, bfloat16 and 8-bit floats, else the stored type."""
    import numpy as np

    order = ">" if swapped else "<"
    if dtype == "BF16":
        return (np.frombuffer(raw, order + "u2").astype("<u4") << 16).view("<f4")
    if dtype in _FLOAT8:
        return np.asarray(_float8_table(dtype)[np.frombuffer(raw, "u1")])
    if dtype not in _NUMPY:
        raise ReadError(f"numbers of type {dtype} are not known")
    values = np.frombuffer(raw, order + _NUMPY[dtype] if _NUMPY[dtype] != "?" else "?")
    if dtype == "F16":
        return values.astype("<f4")
    return values.astype(values.dtype.newbyteorder("<")) if swapped else values


def _float8_table(dtype: str) -> np.ndarray:
    import numpy as np

    exponent_bits, mantissa_bits, bias, kind = _FLOAT8[dtype]
    codes = np.arange(256)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    values = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))
    values = np.where(codes & 0x80, -values, values)
    top = exponent == (1 << exponent_bits) - 1
    if kind == "ieee":
        values = np.where(top, np.where(mantissa == 0, np.copysign(np.inf, values), np.nan), values)
    elif kind == "nan-only":
        values = np.where((codes & 0x7F) == 0x7F, np.nan, values)
    else:
        values = np.where(codes == 0x80, np.nan, values)
    return np.asarray(values, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A fact worth a person's attention. `text` says what, `fix` what to do."""

    rule: str
    severity: Severity
    text: str
    fix: str = ""
    names: tuple[str, ...] = ()
    """The parameters (or positions, as `position 7`) it is about; empty: the whole state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file that was read, and the digest of its index (pickle and zip directory, or header), not of its tensors."""

    path: str
    size: int
    index_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the file holds for one position. A position without state (frozen, or never stepped) has no slots."""

    position: int
    key: int | str
    """As written in the file."""
    group: int
    slots: Mapping[str, Slot] = field(default_factory=dict)
    """Tensors only, under torch's slot names; `step` is not among them."""
    step: float | None = None
    scalars: Mapping[str, Any] = field(default_factory=dict)
    """Other plain values of the entry."""
    name: str | None = None
    """A name that the file itself records, exactly as it stands there."""
    shape: tuple[int, ...] | None = None
    """The parameter's shape, as far as the slots tell it; None when they do not."""
    flat: bool = False
    """True when only the number of elements is known: `shape` is then one number, and the adapter tells the rest."""

    @property
    def has_state(self) -> bool:
        """True when at least one tensor is stored."""
        return bool(self.slots)

    @property
    def numel(self) -> int | None:
        """Number of elements, or None when unknown."""
        return None if self.shape is None else math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One of `param_groups`: its positions in order, and its plain hyperparameters as the file has them."""

    index: int
    positions: tuple[int, ...]
    hyper: Hyper = field(default_factory=dict)
    """`lr`, `initial_lr`, `betas`, `eps`, `weight_decay`, `amsgrad`, …; never `params` or `param_names`."""
    names: tuple[str, ...] | None = None
    """`param_names`, where recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawState:
    """An optimizer state exactly as stored: positions, no names guessed, no number decoded."""

    source: str
    """The path that was asked for."""
    layout: str
    """The row of `formats.READERS`."""
    files: tuple[SourceFile, ...]
    groups: tuple[Group, ...]
    entries: tuple[Entry, ...]
    """`entries[i].position == i`; every position of every group, with state or not."""
    optimizer: str = "unknown"
    """The row of `optimizers.OPTIMIZERS`."""
    recorded: str | None = None
    """Where `Entry.name` comes from (`param_names`, `name-keyed`, `dcp`, `param_shapes`, a sidecar's file name); None: no names in the file."""
    weights: Mapping[str, TensorRef] = field(default_factory=dict)
    """Named model weights that lie within the same checkpoint (Lightning `state_dict`, DCP `model.`)."""
    master: Mapping[int, Slot] = field(default_factory=dict)
    """Position -> fp32 master weights kept in the state (ZeRO)."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """`global_step`, `transformers_version`, `peft_version`, `world_size`, `folder` (the checkpoint folder), … where known."""
    findings: tuple[Finding, ...] = ()
    """What reading itself noticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The trained weights beside a state, by key, and what their configuration says."""

    path: str
    """The folder, or the file, that was asked for."""
    file: str
    """The file that holds the tensors."""
    kind: str
    """`peft`, `model` (a full or partial state dict with live names), `torchtune`, `diffusers`."""
    tensors: Mapping[str, TensorRef]
    """In the file's own order."""
    ordered: bool = False
    """True when that order is the state dict's (torch.save); safetensors sorts."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """adapter_config.json, or nothing."""
    name: str = "default"
    """The adapter's name in the live model, as far as known."""
    name_known: bool = False
    """True when something told the name (`--adapter-name`, a subfolder, recorded names); False: the default is assumed."""
    siblings: tuple[str, ...] = ()
    """Folders of other adapters that the same checkpoint holds."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """`peft_version`, … where known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One source's answer: `names[i]` is the parameter at position i, `keys[i]` its key in the adapter file (None: not in the file)."""

    source: Literal["recorded", "given", "skeleton", "adapter-order", "convention", "content"]
    rule: str
    """Which rule of that source, for people: `param_names`, `trainer >= 4.53`, `one group of all trainables`."""
    names: tuple[str | None, ...]
    """None: the source says nothing of this position (a frozen parameter without state)."""
    keys: tuple[str | None, ...]
    preferred: bool = False
    """True when a version stamp in the checkpoint asks for exactly this rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScore:
    """How a name's own numbers score against its best rival, in the units of `Evidence.margin`."""

    name: str
    position: int
    score: float
    rival: str | None
    margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the numbers say of an order. Names here are adapter keys."""

    verdict: Literal["verified", "contradicted", "silent"]
    """Of the order as a whole, over what could be tested."""
    proven: frozenset[int] = frozenset()
    """Positions whose key the numbers prove."""
    undecided: tuple[int, ...] = ()
    """Positions with state that the numbers neither prove nor refute."""
    carried: frozenset[int] = frozenset()
    """Undecided positions whose module's other factor is proven, and which the numbers do not speak against."""
    order: tuple[str | None, ...] = ()
    """The best assignment found: key by position, None where nothing is assigned."""
    margin: float | None = None
    """The smallest margin over what was decided; None: nothing was."""
    contradictions: tuple[tuple[int, str, str], ...] = ()
    """(position, claimed key, key the numbers prefer)."""
    weakest: tuple[PairScore, ...] = ()
    """The pairs with the smallest margins, weakest first."""
    foreign: bool = False
    """True when the numbers fit no order at all: another run's adapter."""
    used: tuple[str, ...] = ()
    """Tests that spoke."""
    silent: Mapping[str, str] = field(default_factory=dict)
    """Test -> why it could say nothing."""
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordering:
    """The names that were settled on, and how well they are proven (DESIGN section 5)."""

    names: tuple[str | None, ...]
    """By position; None: nothing is written for it."""
    keys: tuple[str | None, ...]
    source: str
    verdict: Literal["verified", "recovered", "partial", "unverified"]
    rule: str = ""
    margin: float | None = None
    undecided: tuple[str, ...] = ()
    rejected: tuple[Mapping[str, str], ...] = ()
    """Losing claims: `source`, `rule`, `reason`."""
    left_out: tuple[int, ...] = ()
    """Positions with state that got no name."""
    findings: tuple[Finding, ...] = ()
    evidence: Evidence | None = None
    """What the numbers said of it; None for one that was read back from a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedParameter:
    """The state of one parameter, by name."""

    name: str
    shape: tuple[int, ...]
    group: int
    """Index into `NamedState.groups`."""
    slots: Mapping[str, Slot]
    step: float | None = None
    position: int | None = None
    """Where it stood in the source."""
    adapter_key: str | None = None
    decoded_from: str = "plain"
    """The encoding of its slots in the source."""
    dtype: str = "F32"
    """The dtype its moments had in the source, before decoding."""
    scalars: Mapping[str, Any] = field(default_factory=dict)
    """Other plain values of its entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedState:
    """An optimizer state that knows its parameters by name; numbers are read only when asked for."""

    optimizer: str
    """The row of `optimizers.OPTIMIZERS`, e.g. `adamw`."""
    optimizer_class: str
    """The class as far as known, e.g. `torch.optim.AdamW`."""
    groups: tuple[Group, ...]
    """`Group.names` hold the parameters' names; `positions` those of the source."""
    parameters: Mapping[str, NamedParameter]
    """In the source's position order."""
    ordering: Ordering | None = None
    adapter: Mapping[str, Any] = field(default_factory=dict)
    """Manifest's `adapter`."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Manifest's `source`."""
    findings: tuple[Finding, ...] = ()
    path: str | None = None
    """The named file it was loaded from."""

    def hyper(self, name: str) -> Hyper:
        """Return the hyperparameters of the group that `name` belongs to."""
        return self.groups[self.parameters[name].group].hyper

    def tensor(self, name: str, slot: str) -> np.ndarray:
        """Return one slot's numbers, float32 (float64 where stored so), in the parameter's shape."""
        return self.parameters[name].slots[slot].read()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """All that a source of names may look at."""

    raw: RawState
    adapter: Adapter | None = None
    base: str | None = None
    """`--base`: a folder with config.json (and perhaps weights), or a config file."""
    order: str | None = None
    """`--order`: a file of names."""
    adapter_name: str | None = None
    previous: Adapter | None = None
    """`--previous`: an earlier adapter of the same run."""


Reader = Callable[[str], RawState]
Names = Sequence[str | None]
