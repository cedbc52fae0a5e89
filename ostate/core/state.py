"""The data that travels through ostate: frozen, lazy, without torch.

Words: *position* is the integer id in the file, *slot* a per-parameter tensor such as `exp_avg_sq`,
*name* the live `named_parameters()` name, *key* the adapter file's key. numpy is imported only where numbers are read.
"""

# No `from __future__ import annotations`: a named tuple compiles each annotation that is text, on every start (docs/performance.md).

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn

from .brief import brief
from .files import sha256_of
from .tensors import Fields, Slot, TensorRef

if TYPE_CHECKING:
    from .documents import FindingRow

Severity = Literal["note", "warning", "error"]
Hyper = Mapping[str, object]
"""A group's hyperparameters; `core/hyper.py` says which kind each has, and reads them. `object`: whoever uses a value looks what it is first."""
NOTHING: Mapping[str, NoReturn] = MappingProxyType({})
"""No entry: what is in it, nobody can say, so it stands for a mapping of any kind of value."""


class Finding(NamedTuple):
    """A fact worth a person's attention. `text` says what, `fix` what to do."""

    rule: str
    """Short name, stable over releases."""
    severity: Severity
    """`note`, `warning` or `error`."""
    text: str
    """What is so, one sentence."""
    fix: str = ""
    """What to do; empty where nothing needs doing."""
    names: tuple[str, ...] = ()
    """The parameters (or positions, as `position 7`) it is about; empty: the whole state."""
    more: int = 0
    """How many further names there are: a named file keeps the first twenty."""

    def as_dict(self) -> "FindingRow":
        """Return the finding as the schemas describe it: `more` only where there are more names."""
        row: FindingRow = {"rule": self.rule, "severity": self.severity, "text": self.text, "fix": self.fix, "names": list(self.names)}
        if self.more:
            row["more"] = self.more
        return row

    def __repr__(self) -> str:
        return brief(self)


class SourceFile(Fields):
    """A file that was read, and the digest of its index (pickle and zip directory, or header), not of its tensors."""

    __slots__ = ("index", "path", "size")

    def __init__(self, path: str, size: int, index: str | tuple[bytes, ...]) -> None:
        self.path = path
        self.size = size
        self.index = index
        """The digest, or the pieces of the index that it is taken of when someone asks: a printed line never does."""

    @property
    def index_sha256(self) -> str:
        """SHA-256 of the index, in hexadecimal digits."""
        if isinstance(self.index, str):
            return self.index
        return sha256_of(*self.index)


class Entry(NamedTuple):
    """What the file holds for one position. A position without state (frozen, or never stepped) has no slots."""

    position: int
    """From 0, over all groups."""
    key: int | str
    """As written in the file."""
    group: int
    """Index of its group."""
    slots: Mapping[str, Slot] = NOTHING
    """Tensors only, under torch's slot names; `step` is not among them."""
    step: float | None = None
    """Updates it got; None: not recorded."""
    scalars: Mapping[str, object] = NOTHING
    """Other plain values of the entry."""
    name: str | None = None
    """A name that the file itself records, exactly as it stands there."""
    shape: tuple[int, ...] | None = None
    """The parameter's shape, as far as the slots tell it; None when they do not."""
    flat: bool = False
    """True when only the number of elements is known: `shape` is then one number, and the adapter tells the rest."""

    def __repr__(self) -> str:
        return brief(self)

    @property
    def has_state(self) -> bool:
        """True when at least one tensor is stored."""
        return bool(self.slots)

    @property
    def numel(self) -> int | None:
        """Number of elements, or None when unknown."""
        return None if self.shape is None else math.prod(self.shape)


class Group(NamedTuple):
    """One of `param_groups`: its positions in order, and its plain hyperparameters as the file has them."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks a group for
    """From 0, in the file's order."""
    positions: tuple[int, ...]
    """Those of its parameters, in the optimizer's order."""
    hyper: Hyper = NOTHING
    """`lr`, `initial_lr`, `betas`, `eps`, `weight_decay`, `amsgrad`, …; never `params` or `param_names`."""
    names: tuple[str, ...] | None = None
    """`param_names`, where recorded."""

    def __repr__(self) -> str:
        return brief(self)


class RawState(NamedTuple):
    """An optimizer state exactly as stored: positions, no names guessed, no number decoded."""

    source: str
    """The path that was asked for."""
    layout: str
    """The row of `read.READERS`."""
    files: tuple[SourceFile, ...]
    """The files that were read."""
    groups: tuple[Group, ...]
    """In the file's order."""
    entries: tuple[Entry, ...]
    """`entries[i].position == i`; every position of every group, with state or not."""
    optimizer: str = "unknown"
    """The row of `optimizers.OPTIMIZERS`."""
    recorded: str | None = None
    """Where `Entry.name` comes from (`param_names`, `name-keyed`, `dcp`, `param_shapes`, a names file's own name); None: no names in the file."""
    weights: Mapping[str, TensorRef] = NOTHING
    """Named model weights that lie within the same checkpoint (Lightning `state_dict`, DCP `model.`)."""
    master: Mapping[int, Slot] = MappingProxyType({})
    """Position -> fp32 master weights kept in the state (ZeRO)."""
    facts: Mapping[str, object] = NOTHING
    """`global_step`, `transformers_version`, `peft_version`, `world_size`, `folder` (the checkpoint folder), … where known."""
    findings: tuple[Finding, ...] = ()
    """What reading itself noticed."""
    read: str = ""
    """The file, or the folder of a layout that is one, which was read of what `source` holds."""
    not_read: tuple[str, ...] = ()
    """Other states in the folder that was asked for, as paths within it."""

    def __repr__(self) -> str:
        return brief(self)


Names = Sequence[str | None]
