"""The order of a state that holds more parameters than its adapter: the extra positions are set aside, the others named, both joined."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import NamedTuple

from ostate import ordering
from ostate.core.naming import Adapter, Ordering, Question
from ostate.core.state import RawState
from ostate.errors import OrderingError
from ostate.ordering import aside, resolve
from ostate.ordering.sources.from_keys import trained_keys
from ostate.read.further_weights import further_weights

from .comparing import comparison_of
from .options import Options


class _Settled(NamedTuple):
    order: Ordering
    places: tuple[int, ...]
    aside: tuple[int, ...]

    @property
    def explained(self) -> int:
        """Positions that the numbers prove."""
        return len(self.order.evidence.proven) if self.order.evidence is not None else 0

    @property
    def names(self) -> dict[int, str | None]:
        return dict(zip(self.places, self.order.names))


def order_beside(question: Question, options: Options) -> Ordering | None:
    """Return the order of the whole state, settled over the positions that the adapter has tensors for; None where no order of these stands
    either, or there is no adapter.

    Args:
        question: the state, the weights that lack some of its positions, and what a person gave.
        options: with what the numbers are asked.

    Raises:
        OrderingError: an order stands over the rest, and the numbers refuse it.
    """
    raw, adapter = question.raw, question.adapter
    if adapter is None:
        return None
    settled: list[_Settled] = []
    refused: list[OrderingError] = []
    for chosen in aside.ways_to_set_aside(raw, adapter):
        try:
            found = _over_rest(question, chosen, options)
        except OrderingError as error:
            refused.append(error)
            continue
        if found is not None:
            settled.append(found)
    if not settled and refused:
        why = refused[0]
        raise type(why)(why.what, where=f"{why.where} (counted without the positions that the adapter has no tensor for)", fix=why.fix)
    best = max(settled, key=lambda one: one.explained, default=None)
    if best is None or any(one is not best and one.explained == best.explained and one.names != best.names for one in settled):
        return None
    file, names = _their_names(raw, adapter, best.aside)
    return aside.laid_back(best.order, raw, best.places, names, adapter, file)


def _over_rest(question: Question, chosen: tuple[int, ...], options: Options) -> _Settled | None:
    """Name the other positions: with the groups that lost all of theirs, else without these groups, as if all they held had been set aside."""
    for emptied in (True, False):
        rest, places = aside.without(question.raw, chosen, emptied=emptied)
        found = _order_of_rest(replace(question, raw=rest), options)
        if found is not None:
            return _Settled(found, places, chosen)
    return None


def _order_of_rest(question: Question, options: Options) -> Ordering | None:
    """Return the order of a state without the positions that its adapter lacks; None where no claim stands over the rest."""
    claims, rejected = ordering.claims(question)
    if not claims:
        return None
    comparison = comparison_of(question.raw, question.adapter, question.previous, options, ())
    return resolve.resolve(question, claims, rejected, comparison)


def _their_names(raw: RawState, adapter: Adapter, chosen: tuple[int, ...]) -> tuple[str, dict[int, str]]:
    """Return the first file of further weights that names any of these positions, the one that names most of them, and the names."""
    # a checkpoint's own weights hold what was trained beside the tuner too: a value head, a projector
    own = set(trained_keys(adapter)) | (set() if adapter.kind == "model" else set(adapter.tensors))
    best: tuple[str, dict[int, str]] = "", {}
    for further in further_weights(raw, adapter):
        tensors = {key: ref for key, ref in further.tensors.items() if key not in own}
        names = aside.names_from(raw, chosen, tensors, ordered=further.ordered)
        if len(names) > len(best[1]):
            best = os.path.basename(further.file), names
    return best
