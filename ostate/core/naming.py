"""The data of naming: adapters, claims, what the numbers said, the names settled on.

A file of its own because making a dataclass takes a millisecond, and looking at a state needs none of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from .adapter_config import AdapterConfig
from .brief import brief
from .names import any_adapter
from .state import Finding, Group, Hyper, RawState
from .tensors import Slot, TensorRef

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


PROVEN = ("verified", "recovered")
"""Verdicts of an order that the numbers bear out whole."""
ALL_TESTS = "all tests"
"""The key of `Evidence.silent` where no test was run at all."""
ClaimSource = Literal["recorded", "given", "skeleton", "adapter-order", "convention", "content"]
EXPLICIT = ("recorded", "given")
"""Sources that the file or the user gives: they outrank every inference."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
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
    config: AdapterConfig = field(default_factory=AdapterConfig)
    """adapter_config.json, or nothing."""
    name: str = "default"
    """The adapter's name in the live model, as far as known."""
    name_known: bool = False
    """True when something gives the name (`--adapter-name`, a subfolder, recorded names); False: the default is assumed."""
    cut: str = ""
    """What every key begins with and no live name does: `module.` of a whole model that was saved from its wrapper; `base_model.model.` or
    `unet.` where names that the checkpoint records lack it."""
    lead: str = ""
    """What every live name begins with and no key does: `model.` of a LightningModule, as the weights in its own checkpoint tell."""
    siblings: tuple[str, ...] = ()
    """Folders of other adapters that the same checkpoint holds."""
    assumed: tuple[str, ...] = ()
    """What of the live names was guessed and not read (the adapter's name, a prefix), a plain sentence each."""
    contested: tuple[str, ...] = ()
    """Those of `assumed` where another reading is as good: names that rest on one are not proven."""
    made_keys: tuple[str, ...] = ()
    """Those of `assumed` that stand in `tensors` already: keys that no file holds as they are here."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """`peft_version`, … where known."""

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Claim:
    """One source's answer: `names[i]` is the parameter at position i, `keys[i]` its key in the adapter file (None: not in the file)."""

    source: ClaimSource
    """Who says so."""
    rule: str
    """Which rule of that source, for people: `param_names`, `trainer >= 4.53`, `one group of all trainables`."""
    names: tuple[str | None, ...]
    """None: the source says nothing of this position (a frozen parameter without state)."""
    keys: tuple[str | None, ...]
    """Adapter key by position; None: not in the file."""
    version_matched: bool = False
    """True when a version stamp in the checkpoint asks for exactly this rule."""
    from_keys: bool = True
    """True when the names were made from the adapter's keys, so that they rest on what was assumed of it; False: somebody wrote them down."""
    by_hand: bool = False
    """True when a person cut the groups (a rule that is a guess): each may then be in an order of its own; a loop orders all of them alike."""

    def __repr__(self) -> str:
        return brief(self)

    @property
    def explicit(self) -> bool:
        """True for names that the file or the user gives: they outrank every inference."""
        return self.source in EXPLICIT


def first_rule(rule: str) -> str:
    """Return the first of several rules that give the same order."""
    return rule.partition("; ")[0]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PairScore:
    """How a name's own numbers score against its best rival, in the units of `Evidence.margin`."""

    name: str
    """Adapter key."""
    position: int
    """Where it stands in the state."""
    score: float
    """Its own score."""
    rival: str | None
    """The best other key for the position; None: there is none."""
    margin: float
    """Score less the rival's."""

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Evidence:
    """What the numbers say of an order. Names here are adapter keys."""

    verdict: Literal["verified", "contradicted", "silent"]
    """Of the order as a whole, over what could be tested."""
    proven: frozenset[int] = frozenset()
    """Positions whose key the numbers prove."""
    undecided: tuple[int, ...] = ()
    """Positions with state that the numbers neither prove nor refute."""
    order: tuple[str | None, ...] = ()
    """The best assignment found: key by position, None where nothing is assigned."""
    margin: float | None = None
    """Digits against all other orders together, or of the weakest position where no order is claimed; None: nothing was decided."""
    contradictions: tuple[tuple[int, str, str], ...] = ()
    """(position, claimed key, key the numbers prefer)."""
    weakest: tuple[PairScore, ...] = ()
    """The pairs with the smallest margins, weakest first."""
    alone: frozenset[int] = frozenset()
    """Of the proven positions, those whose own numbers suffice, whatever the others are."""
    apart: tuple[int, ...] = ()
    """Positions of modules whose numbers stand far from their siblings': not proven."""
    untrained: tuple[int, ...] = ()
    """Positions of modules whose moments and zero factor are all zero."""
    weakest_alternative: tuple[str, float] | None = None
    """(what, digits): the other order with the least evidence against it; its chance is at most 10^-digits."""
    open: tuple[tuple[str, float], ...] = ()
    """(what, digits) of the other orders that the numbers leave possible."""
    other_run: bool = False
    """True when the numbers fit no order at all: another run's adapter."""
    used: tuple[str, ...] = ()
    """Tests that spoke."""
    silent: Mapping[str, str] = field(default_factory=dict)
    """Test -> why it could say nothing."""
    findings: tuple[Finding, ...] = ()
    """What looking at single modules found."""

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Ordering:
    """The names that were settled on, and how well they are proven."""

    names: tuple[str | None, ...]
    """By position; None: nothing is written for it."""
    keys: tuple[str | None, ...]
    """Adapter key by position; None: the parameter is not in the adapter file."""
    source: str
    """Where the names come from: a source of `Claim`."""
    verdict: Literal["verified", "recovered", "partial", "unverified"]
    """How well they are proven."""
    rule: str = ""
    """Which rule of the source, several joined by `; ` where they give the same order."""
    proof: Literal["each", "order"] | None = None
    """`each`: every name stands by its own numbers; `order`: they stand as a whole, and `undecided` lists those that do not by themselves."""
    weakest_alternative: tuple[str, float] | None = None
    """(what, digits): the other order with the least evidence against it; its chance is at most 10^-digits."""
    margin: float | None = None
    """Digits against all other orders together: their chance is at most 10^-margin."""
    undecided: tuple[str, ...] = ()
    """Names that the tensor values do not prove by themselves."""
    rejected: tuple[Mapping[str, str], ...] = ()
    """Losing claims: `source`, `rule`, `reason`."""
    left_out: tuple[int, ...] = ()
    """Positions with state that got no name."""
    assumed: tuple[str, ...] = ()
    """What of the names was guessed and not read, a plain sentence each. The numbers prove which adapter key stands where, never these."""
    from_keys: bool = True
    """As `Claim.from_keys`."""
    findings: tuple[Finding, ...] = ()
    """What a person should know, the worst first in print."""
    evidence: Evidence | None = None
    """What the numbers say of it; None for one that was read back from a file."""

    def __repr__(self) -> str:
        return brief(self)

    @property
    def proven(self) -> bool:
        """True when every name with state is proven."""
        return self.verdict in PROVEN

    @property
    def explicit(self) -> bool:
        """True for names that the file or the user gives."""
        return self.source in EXPLICIT


def settled(ordering: Ordering, findings: Iterable[Finding]) -> bool:
    """True when no person needs to look: every name is proven, and nothing found is more than a note."""
    return ordering.proven and all(finding.severity == "note" for finding in findings)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NamedParameter:
    """The state of one parameter, by name."""

    name: str
    """As `named_parameters()` of the live model gives it, without wrappers."""
    shape: tuple[int, ...]
    """Of the parameter."""
    group: int
    """Index into `NamedState.groups`."""
    slots: Mapping[str, Slot]
    """Slot name, such as `exp_avg_sq` -> its tensor, read when asked for."""
    step: float | None = None
    """Updates it got; None: not recorded."""
    position: int | None = None
    """Where it stood in the source."""
    adapter_key: str | None = None
    """Its key in the adapter file; None: not in it."""
    decoded_from: str = "plain"
    """The encoding of its slots in the source."""
    dtype: str = "F32"
    """The dtype its moments had in the source, before decoding."""
    scalars: Mapping[str, object] = field(default_factory=dict)
    """Other plain values of its entry."""

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NamedState:
    """An optimizer state that knows its parameters by name; numbers are read only when asked for."""

    optimizer: str
    """The row of `optimizers.OPTIMIZERS`, e.g. `adamw`."""
    optimizer_class: str
    """The class as far as known, e.g. `torch.optim.AdamW`."""
    groups: tuple[Group, ...]
    """`Group.names` hold the parameters' names in the optimizer's order, also of those without an entry in `parameters`, since torch keeps no
    state of what never got a gradient; `positions` those of the source."""
    parameters: Mapping[str, NamedParameter]
    """In the source's position order."""
    ordering: Ordering | None = None
    """How its names were determined; None where that was not recorded."""
    adapter: Mapping[str, object] = field(default_factory=dict)
    """Manifest's `adapter`."""
    source: Mapping[str, object] = field(default_factory=dict)
    """Manifest's `source`."""
    findings: tuple[Finding, ...] = ()
    """What a person should know, the worst first in print."""
    path: str | None = None
    """The named file it was loaded from."""

    def __repr__(self) -> str:
        return brief(self)

    def __len__(self) -> int:
        """How many parameters have state."""
        return len(self.parameters)

    def __bool__(self) -> bool:
        """Always true: a state without parameters is a state."""
        return True

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the parameters with state, in the source's order."""
        return iter(self.parameters)

    def __contains__(self, name: object) -> bool:
        """True where the parameter of this name has state."""
        return name in self.parameters

    def __getitem__(self, name: str) -> NamedParameter:
        """Return the state of one parameter.

        Raises:
            KeyError: none of this name has state; the message tells the name that was meant, where an adapter's key was passed.
        """
        try:
            return self.parameters[name]
        except KeyError:
            raise KeyError(self._no_parameter(name)) from None

    def _no_parameter(self, name: str) -> str:
        if name in self.names:
            return f"{name!r} is in the state without moments: it never got a gradient"
        near = next((own for own, parameter in self.parameters.items() if parameter.adapter_key == name), None)
        near = near or next((own for own in self.parameters if any_adapter(own) == any_adapter(str(name))), None)
        near = near or next((own for own in self.parameters if str(name) in own), None)
        return f"no parameter of this state is called {name!r}" + (f": did you mean {near!r}?" if near else "")

    def hyper(self, name: str) -> Hyper:
        """Return the hyperparameters of the group that `name` belongs to."""
        return self.groups[self.parameters[name].group].hyper

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all positions in the optimizer's order, group after group, with state or without."""
        return tuple(name for group in self.groups for name in group.names or ())

    @property
    def without_state(self) -> tuple[str, ...]:
        """The names that have no entry in `parameters`."""
        return tuple(name for name in self.names if name not in self.parameters)

    @property
    def group_lengths(self) -> tuple[int, ...] | None:
        """How many positions each group of the source had; None where that was not recorded."""
        recorded = self.source.get("positions")
        return tuple(one for one in recorded if isinstance(one, int)) if isinstance(recorded, (list, tuple)) else None

    @property
    def positions(self) -> int:
        """How many positions the source had: as recorded in `source["positions"]`, else at least as many as the positions that are known."""
        recorded = self.group_lengths
        if recorded is not None:
            return sum(recorded)
        known = {parameter.position for parameter in self.parameters.values() if parameter.position is not None}
        left_out = set(self.ordering.left_out) if self.ordering is not None else set()
        return max(len(self.names), max(known | left_out, default=-1) + 1)

    @property
    def unnamed(self) -> int:
        """How many positions of the source have no name here."""
        return self.positions - len(self.names)

    def tensor(self, name: str, slot: str) -> NDArray[np.floating]:
        """Return one slot's numbers, float32 (float64 where stored so), in the parameter's shape.

        Raises:
            KeyError: no parameter of this name has state, or it has no such slot.
        """
        slots = self[name].slots
        if slot not in slots:
            raise KeyError(f"{name!r} has no slot {slot!r}: it has {', '.join(slots)}")
        return slots[slot].read()


def positions_of(state: NamedState) -> dict[str, int]:
    """Return a position for each name: the source's where they fill 0 to n - 1, those without state between them in order; else counted anew."""
    names = state.names
    known = {name: position for name, p in state.parameters.items() if (position := p.position) is not None}
    free = sorted(set(range(len(names))) - set(known.values()))
    if len(known) < len(state.parameters) or len(free) != len(names) - len(known):
        return {name: position for position, name in enumerate(names)}
    between = iter(free)
    return {name: known[name] if name in known else next(between) for name in names}


class Moved(NamedTuple):
    """Which tensors training changed, found by comparing weights: they tell which part of a model the optimizer holds."""

    moved: frozenset[str] = frozenset()
    """Keys of tensors that differ from where they started."""
    unmoved: frozenset[str] = frozenset()
    """Keys of tensors that stand bit for bit where they started."""
    still: frozenset[int] = frozenset()
    """Positions whose moments are all zero: what they belong to was never moved, trained or not."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Question:
    """The state, the weights and the options from which a source makes its claims."""

    raw: RawState
    adapter: Adapter | None = None
    base: str | None = None
    """`--base`: a folder with config.json (and perhaps weights), or a config file."""
    order: str | None = None
    """`--order`: a file of names."""
    adapter_name: str | None = None
    previous: Adapter | None = None
    """`--previous`: an earlier adapter of the same run."""
    evidence: bool = True
    """False under `--no-evidence`."""
    moved: Moved | None = None
    """What of a whole model was moved; None: not looked at."""

    def __repr__(self) -> str:
        return brief(self)
