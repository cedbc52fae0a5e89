"""The adapter of `--previous`, held against the state's own: another model's or another run's is refused."""

from __future__ import annotations

from ostate.core.naming import Adapter
from ostate.core.state import Finding
from ostate.errors import Contradiction
from ostate.evidence.earlier import RELATED, resemblance

_FIX = "pass the adapter of an earlier checkpoint of this run, or drop --previous"


def earlier(previous: Adapter, adapter: Adapter) -> tuple[Adapter | None, tuple[Finding, ...]]:
    """Return the earlier adapter (None where it is of no use) and findings on it.

    Args:
        previous: what was given as the earlier adapter; numbers are read here.
        adapter: the one that was saved with the state.

    Raises:
        Contradiction: it is of another model, or of another run.
    """
    found = resemblance(previous, adapter)
    held, lacking = len(previous.tensors), len(adapter.tensors) - found.shared
    if not found.shared:
        text = f"the adapter of --previous is of another model: none of its {held} tensors has the name and shape of one of the adapter's"
        raise Contradiction(text, where=previous.file, fix=_FIX)
    if found.equal:
        text = f"the adapter of --previous holds the same numbers as the state's own: it is not an earlier one, and was not used ({previous.file})"
        return None, (Finding(rule="previous-not-used", severity="warning", text=text, fix=_FIX),)
    if found.unrelated:
        text = "the adapter of --previous is of another run: its numbers are unrelated to those of the state's adapter"
        why = (f"over {found.matrices} matrices their correlation is {found.deviations:.1f} deviations from chance; {RELATED:.0f} are needed",)
        raise Contradiction(text, where=previous.file, why=why, fix=_FIX)
    if not lacking:
        return previous, ()
    text = f"the adapter of --previous lacks {lacking} of {len(adapter.tensors)} tensors, by name and shape ({previous.file})"
    return previous, (Finding(rule="previous-lacks-tensors", severity="warning", text=text, fix=_FIX),)
