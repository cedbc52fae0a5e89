"""The order of a state that holds more parameters than its adapter: the extra positions are set aside, the others named, both joined."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from ostate.core.naming import Adapter, Ordering
from ostate.core.state import RawState
from ostate.errors import OrderingError
from ostate.ordering import aside
from ostate.ordering.sources.from_keys import trained_keys
from ostate.read.further_weights import further_weights

OrderOfRest = Callable[[RawState], Ordering | None]


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


def order_beside(raw: RawState, adapter: Adapter, order_of_rest: OrderOfRest) -> Ordering | None:
    """Return the order of the whole state, settled over the positions that the adapter has tensors for; None where no order of these stands either.

    Args:
        raw: the state.
        adapter: the weights that lack some of its positions.
        order_of_rest: the order of a state, by claims and numbers; None where no claim stands; raises OrderingError where it is refused.

    Raises:
        OrderingError: an order stands over the rest, and the numbers refuse it.
    """
    settled: list[_Settled] = []
    refused: list[OrderingError] = []
    for chosen in aside.ways_to_set_aside(raw, adapter):
        try:
            found = _over_rest(raw, chosen, order_of_rest)
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


def _over_rest(raw: RawState, chosen: tuple[int, ...], order_of_rest: OrderOfRest) -> _Settled | None:
    """Name the other positions: with the groups that lost all of theirs, else without these groups, as if all they held had been set aside."""
    for emptied in (True, False):
        rest, places = aside.without(raw, chosen, emptied=emptied)
        found = order_of_rest(rest)
        if found is not None:
            return _Settled(found, places, chosen)
    return None


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
