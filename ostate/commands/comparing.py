"""What the numbers are asked with: the adapter, an earlier one, the base model, the checkpoint's own weights; or why they are not asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ostate.core.files import announce
from ostate.core.naming import Adapter
from ostate.core.state import RawState
from ostate.ordering import keys
from ostate.read.fitting import SCALED
from ostate.read.weights import base_weights, own_weights

from .inspect import stored_bytes
from .options import Options

if TYPE_CHECKING:
    from ostate.evidence.comparison import Comparison

MOST_LISTED = 6
"""Files that one message lists."""


def comparison_of(raw: RawState, adapter: Adapter | None, previous: Adapter | None, options: Options, near: Sequence[str]) -> Comparison:
    """Return what asks the numbers: of the adapter first; where it tells nothing, of the checkpoint's own weights of the same save."""
    from ostate.evidence.comparison import Comparison  # numpy, not needed where the numbers are not asked

    untested = _untested_reason(adapter, options, near)
    own = None
    if adapter is not None and untested is None:
        own = own_weights(raw, adapter, lambda key: keys.live_name(key, adapter)) if raw.weights else None
        announce(lambda: stored_bytes(raw) + sum(tensor.nbytes for tensor in adapter.tensors.values()))
    base = base_weights(options.base) if options.base is not None else None
    return Comparison(raw, adapter, previous=previous, base=base, own=own, untested=untested)


def _untested_reason(adapter: Adapter | None, options: Options, near: Sequence[str]) -> str | None:
    if not options.evidence:
        return "--no-evidence was given"
    if adapter is not None:
        scaled = adapter.facts.get(SCALED)  # no factor stands in the file as it was trained
        return scaled if isinstance(scaled, str) else None
    listed = f"; weight files nearby: {', '.join(near[:MOST_LISTED])}" if near else ""
    return f"no adapter was found{listed}"
