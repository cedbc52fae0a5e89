"""Which of several adapters is the state's: the one that the numbers explain best, or a refusal that lists them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ostate.core.naming import Adapter, Ordering
from ostate.core.state import Finding, RawState
from ostate.errors import Ambiguous, Contradiction, OrderingError, ReadError
from ostate.ordering import assumed
from ostate.ordering.advice import SAME_SAVE
from ostate.read.adapter_files import is_tuner_key
from ostate.read.together import ALL
from ostate.read.weights import Candidates, lacking

from .options import Options
from .order import order_of

MOST_TRIED = 6
"""Adapters whose numbers are compared with one state."""
_FROZEN = ("ref", "reference")
"""What TRL calls the frozen copy of an adapter that goes on training (trl trainer/utils.py, `add_adapter("ref")`)."""


class _Tried(NamedTuple):
    adapter: Adapter
    order: Ordering

    @property
    def proven(self) -> frozenset[int]:
        """Positions that the numbers prove."""
        return frozenset(self.order.evidence.proven) if self.order.evidence is not None else frozenset()

    @property
    def explained(self) -> int:
        """How many positions the numbers prove."""
        return len(self.proven)

    @property
    def rank(self) -> tuple[int, bool]:
        """How well this adapter explains the state: the positions it explains; where a copy explains as many, that it is not the frozen one."""
        return self.explained, self.adapter.name not in _FROZEN

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name for name in self.order.names if name is not None)

    @property
    def positions(self) -> frozenset[int]:
        """Positions that it names."""
        return frozenset(position for position, name in enumerate(self.order.names) if name is not None)

    def stands_before(self, other: _Tried) -> bool:
        """Return whether this one lies in a folder above the other's, and both are the state's: they name other positions of it.

        Then a name belongs to this one: the other's model would bear it too, with a module's name in front that no file tells.
        """
        if self.positions & other.positions or not _above(self.adapter, other.adapter):
            return False
        return bool(self.explained) or 2 * other.explained < len(other.positions)


def _above(one: Adapter, other: Adapter) -> bool:
    return os.path.dirname(other.file).startswith(os.path.join(os.path.dirname(one.file), ""))


def order_among(raw: RawState, found: Candidates, options: Options) -> tuple[Adapter | None, Ordering]:
    """Return the adapter that goes with the state and the order it gives, or refuse.

    One candidate is taken as it is. Several are all compared with the numbers: the one that explains more positions is taken; of saves of one run,
    which would give the same names, the first (the newest) that proves them all: one of another step proves less. Where two would give other names
    and explain as much, the first is taken and its name is said to be assumed.

    Raises:
        OrderingError: none of them gives an order; or another one explains more than the one that a person named.
    """
    try:
        return _choose(raw, found, options)
    except Ambiguous as error:
        refusal = _with_misfit(error, raw, found)
        if options.optimizer not in (None, ALL):  # one of several: the factors of its modules may lie in another
            refusal.fix = f"{refusal.fix}; or take all optimizers as one state with --optimizer {ALL}"
        raise refusal from None


def _choose(raw: RawState, found: Candidates, options: Options) -> tuple[Adapter | None, Ordering]:
    """Return what `order_among` does; why nothing stands says nothing yet of an adapter that does not fit."""
    if found.on_trial:
        return _on_trial(raw, found, options)
    if len(found.adapters) < 2:
        adapter = found.adapters[0] if found.adapters else None
        return adapter, order_of(raw, adapter, options, near=found.seen)
    tried, refused = _try(raw, found, options)
    best = max(tried, key=lambda one: one.rank, default=None)  # the first of those that explain as much
    if best is not None and not found.asked:
        best = next((one for one in tried if one.stands_before(best)), best)
    if found.asked:
        _refuse_another(found.adapters[0], tried, best)
    if best is None or (found.asked and best.adapter is not found.adapters[0]):
        raise _with_list(refused[0], found.adapters)
    return best.adapter, _with_rivals(best, tried, found.adapters)


def refuse_another_models(raw: RawState, adapters: Sequence[Adapter]) -> None:
    """Refuse what a person passed as the adapter where no tensor of it has the shape of a position with state.

    Methods that save something computed from what was trained (p-tuning) are left alone: their tensors have shapes of their own.

    Raises:
        ReadError: it is so.
    """
    with_state = [entry for entry in raw.entries if entry.has_state]
    if not adapters or not with_state or any(entry.shape is None for entry in with_state):
        return
    if all(lacking(raw, adapter) == len(with_state) and all(map(is_tuner_key, adapter.tensors)) for adapter in adapters):
        text = f"the adapter is of another model: none of its {len(adapters[0].tensors)} tensors has the shape of a position with state"
        raise ReadError(text, where=adapters[0].file, fix=SAME_SAVE)


def _with_misfit(error: Ambiguous, raw: RawState, found: Candidates) -> Ambiguous:
    """Put first among the reasons that the adapter which a person passed lacks tensors of the state; returns the error itself."""
    lacks = lacking(raw, found.adapters[0]) if found.asked else 0
    if lacks:
        total = sum(entry.has_state for entry in raw.entries)
        error.why = (f"the adapter has no tensor of the right shape for {lacks} of {total} positions with state: is it of another run?", *error.why)
        error.fix = f"{SAME_SAVE}; or {error.fix}"
    return error


def _refuse_another(asked: Adapter, tried: Sequence[_Tried], best: _Tried | None) -> None:
    """Refuse an adapter that a person named where one beside it explains more.

    Raises:
        Contradiction: it does.
    """
    own, rank = next(((one.explained, one.rank) for one in tried if one.adapter is asked), (0, (0, True)))
    if best is None or best.rank <= rank:
        return
    why = f"; {asked.name!r} is what TRL calls the frozen copy" if best.explained == own else ""
    raise Contradiction(
        f"the state belongs to the adapter {best.adapter.name!r} beside it",
        where=asked.file,
        why=(f"the tensor values prove {best.explained} positions of {best.adapter.name!r}, {own} of {asked.name!r}{why}",),
        fix=f"pass --adapter-name {best.adapter.name}, or --adapter {os.path.dirname(best.adapter.file)}",
    )


def _try(raw: RawState, found: Candidates, options: Options) -> tuple[list[_Tried], list[OrderingError]]:
    tried: list[_Tried] = []
    refused: list[OrderingError] = []
    with_state = sum(entry.has_state for entry in raw.entries)
    for adapter in found.adapters[:MOST_TRIED]:
        whole = [one.adapter for one in tried if one.explained == with_state]
        if any(one.name == adapter.name and one.tensors.keys() == adapter.tensors.keys() for one in whole):
            continue  # another save of one that is proven whole: it would give the same names
        try:
            tried.append(_Tried(adapter, order_of(raw, adapter, options, near=found.seen)))
        except OrderingError as error:
            refused.append(error)
    return tried, refused


def _on_trial(raw: RawState, found: Candidates, options: Options) -> tuple[Adapter | None, Ordering]:
    """Take an adapter from beside the checkpoint only where the numbers prove that it belongs to the state."""
    tried, _ = _try(raw, found, options)
    proven = [one for one in tried if one.explained]
    if not proven:
        try:
            return None, order_of(raw, None, options, near=found.seen)
        except OrderingError as error:
            raise _with_list(error, found.adapters) from error
    best = max(proven, key=lambda one: one.explained)
    where = f"the adapter was found beside the checkpoint; the tensor values prove {best.explained} of its positions: {best.adapter.file}"
    return best.adapter, _with_rivals(best, proven, found.adapters, rule="adapter-beside", where=where)


def _with_rivals(best: _Tried, tried: Sequence[_Tried], adapters: Sequence[Adapter], *, rule: str = "adapter-chosen", where: str = "") -> Ordering:
    """Say which adapter was taken and which were left aside, in one note, and that the name is assumed where one of these explains as much."""
    others = [one for one in tried if one is not best and one.names != best.names]
    equal = [one for one in others if one.explained >= best.explained and one.adapter.name not in _FROZEN and one.positions & best.positions]
    order = best.order
    if equal and order.from_keys:
        text = f"the state belongs to the adapter {best.adapter.name!r}, not to {_listed(one.adapter for one in equal)} beside it"
        order = assumed.assume(order, (text,), (text,))
    left = [adapter for adapter in adapters if adapter is not best.adapter]
    where = where or f"the state is read with {best.adapter.file} ({best.explained} position{'s' * (best.explained != 1)} proven)"
    text = f"{where}; not used: {', '.join(one.file for one in left)}" if left else where
    if beside := [one.adapter.file for one in tried if one is not best and one.explained and not one.positions & best.positions]:
        text = f"{text}; other positions are those of {', '.join(beside)}: one optimizer trained both"
    fix = "choose another with --adapter DIR or --adapter-name N" if left else "choose another with --adapter DIR"
    said = Finding(rule=rule, severity="note", text=text, fix=fix)
    return replace(order, findings=(*order.findings, said))


def _listed(adapters: Iterable[Adapter]) -> str:
    return ", ".join(repr(adapter.name) for adapter in adapters)


def _with_list(error: OrderingError, adapters: Sequence[Adapter]) -> OrderingError:
    """Return the refusal with the adapters that were tried."""
    files = ", ".join(adapter.file for adapter in adapters[:MOST_TRIED])
    why = (*error.why[:1], f"adapters nearby: {files}", *error.why[1:])
    fix = error.fix if "--adapter" in error.fix else f"{error.fix}, or choose an adapter with --adapter FILE"
    return type(error)(error.what, where=error.where, why=why, fix=fix)
