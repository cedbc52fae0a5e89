"""Do these numbers belong to this adapter under these names? Proof, contradiction, or silence with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ostate.model import Adapter, Evidence, RawState, TensorRef
from ostate.ordering.judge import judge
from ostate.ordering.match import from_keys, search
from ostate.ordering.paths import Paths
from ostate.ordering.tables import gather, settles, widths


def verify(
    keys: Sequence[str | None],
    raw: RawState,
    adapter: Adapter,
    *,
    previous: Adapter | None = None,
    base: Mapping[str, TensorRef] | None = None,
) -> Evidence:
    """Return what the numbers say of an order.

    The best order is sought from the claim and from the numbers alone. The claim is proven where the better end agrees with it and no other
    order comes near, contradicted where another one is clearly better.

    Args:
        keys: the claim, adapter key by position; None where it says nothing or the file does not hold the tensor.
        raw: the state; slots are read here.
        adapter: the trained weights.
        previous: an earlier adapter of the same run.
        base: the base model's weights, where at hand.
    """
    likely = {position: key for position, key in enumerate(keys) if key is not None}
    for thin in widths(adapter):
        tables = gather(raw, adapter, previous=previous, base=base, likely=likely, thin=thin)
        paths = Paths(tables.reader, tables.displaced, tables.early)
        match, now = search(tables, paths, claimed=from_keys(keys, tables), fixed={})
        found = judge(tables, paths, match, now, raw, claimed=keys)
        if settles(found, tables):
            break
    return found
