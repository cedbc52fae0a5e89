"""The data that travels through ostate: frozen, lazy, without torch.

Words: *position* is the integer id in the file, *slot* a per-parameter tensor such as `exp_avg_sq`,
*name* the live `named_parameters()` name, *key* the adapter file's key. numpy is imported only where numbers are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .tensors import CHUNK, ITEMSIZE, Part, Slot, TensorRef, decode_numbers

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "CHUNK", "ITEMSIZE", "Adapter", "Claim", "Entry", "Evidence", "Finding", "Group", "Hyper", "NamedParameter", "NamedState", "Names", "Ordering",
    "PairScore", "Part", "Question", "RawState", "Reader", "Severity", "Slot", "SourceFile", "TensorRef", "decode_numbers",
]  # fmt: skip

Severity = Literal["note", "warning", "error"]
Hyper = Mapping[str, Any]


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
    """The names that were settled on, and how well they are proven."""

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
