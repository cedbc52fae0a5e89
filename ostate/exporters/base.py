"""What every exporter is: a place to write to, a function that writes, and what it cannot carry over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ostate.core.naming import NamedState
from ostate.core.state import Finding
from ostate.core.tensors import Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What a person may ask of an exporter."""

    v_hat: bool = False
    """Write the second moment bias-corrected, for programs that divide by it as it stands."""
    taken_as: Literal["own", "adamw_torch"] = "own"
    """Whose slots a torch file holds: those of the optimizer that made the state, or torch's AdamW's."""
    root: str = "optim"
    """The key that a distributed checkpoint keeps the optimizer under."""
    rest: Mapping[str, object] = field(default_factory=dict)
    """What else a distributed checkpoint holds, by its whole key: slots for tensors, plain values as they are."""
    weights: Mapping[str, Slot] | None = None
    """Trained weights by live name, for layouts that keep them beside the moments; None: `--adapter` was not given."""


Write = Callable[[NamedState, Path, ExportOptions], None]
Refuse = Callable[[NamedState, ExportOptions], None]
Losses = Callable[[NamedState, ExportOptions], Iterator[Finding]]


def takes_all(state: NamedState, export_options: ExportOptions) -> None:
    """Refuse nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """One layout."""

    text: str
    """Who reads it, for people."""
    file: str | None
    """The usual name of the file; None: a folder."""
    write: Write
    losses: Losses
    refuse: Refuse = takes_all
    """Raises `ExportError` for a state that the layout cannot hold; asked before anything is written, and where nothing is to be."""
    positional: bool = False
    """True where who reads it counts positions: a name that is missing would shift all that follow."""
    own_slots: bool = False
    """True where the optimizer that made the state loads it as its own, or torch's AdamW does by `--as`."""
    keyed: bool = False
    """True where the optimizer is one entry among others of a checkpoint, under `root`."""
    v_hat: bool = False
    """True where the second moment may be written bias-corrected: whoever steps on with it would correct it twice."""


def groups_of(state: NamedState) -> tuple[tuple[str, ...], ...]:
    """Return the names of every group in the optimizer's order, with state or without."""
    return tuple(group.names or () for group in state.groups)


def missing_positions(state: NamedState) -> str:
    """Return `4 of 12 positions are missing`, or nothing where each position of the source has a name."""
    missing, of = state.unnamed, state.positions
    return f"{missing} of {of} positions {'is' if missing == 1 else 'are'} missing" if missing else ""


def lost_slots(state: NamedState, kept: frozenset[str], who: str) -> Iterator[Finding]:
    """Say which slots a layout has no place for."""
    lost = sorted({slot for parameter in state.parameters.values() for slot in parameter.slots} - kept)
    if lost:
        yield Finding(rule="export-slots-lost", severity="warning", text=f"{who} cannot store {', '.join(lost)}")


def lost_scalars(state: NamedState, who: str) -> Iterator[Finding]:
    """Say which plain values of entries a layout has no place for."""
    lost = sorted({key for parameter in state.parameters.values() for key in parameter.scalars} - MARKS)
    if lost:
        yield Finding(rule="export-scalars-lost", severity="warning", text=f"{who} cannot store {', '.join(lost)}")


def lost_groups(state: NamedState, keys: Sequence[str], who: str) -> Iterator[Finding]:
    """Say what is lost where a layout keeps one value for all parameters."""
    used = [group for group in state.groups if group.names]
    differ = [key for key in keys if len({repr(group.hyper.get(key)) for group in used}) > 1]
    if differ:
        text = f"{who} keeps one group: {', '.join(differ)} of the first of {len(used)} groups is used for all"
        yield Finding(rule="export-groups-lost", severity="warning", text=text, fix="export each group by itself (--for NAMES)")


def lost_hyper(state: NamedState, kept: frozenset[str], who: str) -> Iterator[Finding]:
    """Say which hyperparameters a layout has no place for."""
    lost = sorted({key for group in state.groups if group.names for key in group.hyper} & (CARRIED - kept))
    if lost:
        yield Finding(rule="export-hyper-lost", severity="note", text=f"{who} cannot store {', '.join(lost)}")


def lost_packing(state: NamedState) -> Iterator[Finding]:
    """Say that moments stored in few bits leave as float32."""
    packed = sorted({parameter.decoded_from for parameter in state.parameters.values()} - {"plain"})
    if packed:
        text = f"the moments were {', '.join(packed)}; they are written decoded, for the 32-bit form of the optimizer"
        yield Finding(rule="export-packing-lost", severity="warning", text=text)


ADAMW_SLOTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
AUTO8BIT_SLOTS = ("exp_avg", "exp_avg_sq", "s", "p0", "lr_mask")
"""What ai-toolkit's own optimizers keep as an `Auto8bitTensor` where they keep any."""
TORCHAO = ("torchao-8bit", "torchao-4bit")
"""torchao's packings, as `decoded_from` has them."""
MARKS = frozenset({"bitsandbytes", "torchao", "torchao_block", "auto8bit"})
"""Values that only say who packed an entry."""
CARRIED = frozenset({"lr", "initial_lr", "betas", "eps", "weight_decay", "amsgrad"})
"""Hyperparameters worth a word when they are lost."""
