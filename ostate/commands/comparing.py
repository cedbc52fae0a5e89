"""Choose the weights that a state is compared with: the adapter, an earlier one, the base model, the checkpoint's own; or say why none is."""

from __future__ import annotations

from collections.abc import Sequence

from ostate.core.files import announce
from ostate.core.naming import Adapter
from ostate.core.state import RawState
from ostate.evidence.untested import Untested
from ostate.ordering import keys
from ostate.ordering.resolve import EvidenceSource
from ostate.read.fitting import SCALED
from ostate.read.weights import base_weights, own_weights

from .inspect import stored_bytes
from .options import Options

MOST_LISTED = 6
"""Files that one message lists."""


def comparison_of(raw: RawState, adapter: Adapter | None, previous: Adapter | None, options: Options, near: Sequence[str]) -> EvidenceSource:
    """Return the comparison of the state with the adapter, or with the checkpoint's own weights where the adapter's values tell nothing."""
    if not options.evidence:
        return Untested(raw, "--no-evidence was given")
    if adapter is None:
        listed = f"; weight files nearby: {', '.join(near[:MOST_LISTED])}" if near else ""
        return Untested(raw, f"no adapter was found{listed}")
    scaled = adapter.facts.get(SCALED)  # no factor stands in the file as it was trained
    if isinstance(scaled, str):
        return Untested(raw, scaled)
    from ostate.evidence.comparison import Comparison  # thirty modules, not needed where the numbers are not asked

    own = own_weights(raw, adapter, {key: keys.live_name(key, adapter) for key in adapter.tensors}) if raw.weights else None
    announce(lambda: stored_bytes(raw) + sum(tensor.nbytes for tensor in adapter.tensors.values()))
    base = base_weights(options.base) if options.base is not None else None
    return Comparison(raw, adapter, previous=previous, base=base, own=own)
