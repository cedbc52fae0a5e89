"""Named states of the real checkpoints, by the live optimizer's own names."""

from __future__ import annotations

from functools import cache

from ostate import read as formats
from ostate.core.naming import Adapter, NamedState, Ordering
from ostate.core.state import Finding, RawState
from ostate.ordering.join import named_state
from ostate.read import adapters
from tests.real import case, sha256


@cache
def real(name: str) -> tuple[RawState, Adapter, list[str | None], NamedState]:
    """Return (state by position, adapter, adapter key by position, named state) of a case of tests/cases."""
    from ostate.ordering.keys import match_all

    found = case(name)
    raw = formats.read(str(found.state))
    adapter = adapters.read_adapter(str(found.adapter))
    by_digest = {row["exp_avg_sq_sha256"]: name for name, row in found.with_state.items()}
    names = [by_digest[sha256(entry.slots["exp_avg_sq"].read())] if entry.has_state else None for entry in raw.entries]
    keys, _ = match_all(names, adapter)
    ordering = Ordering(names=tuple(names), keys=keys, source="recorded", rule="the live optimizer", verdict="verified", margin=12.0)
    named = named_state(raw, ordering, adapter)
    finding = Finding(rule="r", severity="warning", text="<b>bold</b> & brave", fix="look <here>", names=tuple(named.parameters)[:2])
    return raw, adapter, list(keys), _with(named, finding)


def _with(state: NamedState, finding: Finding) -> NamedState:
    from tests.records import replace

    return replace(state, findings=(*state.findings, finding))
