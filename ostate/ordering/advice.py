"""Which options could still decide an order: never those that were passed already."""

from __future__ import annotations

from typing import NamedTuple

from ostate.core.naming import Question

ADAPTER = "--adapter DIR (the adapter saved at the same step)"
ORDER = "--order FILE (one name per line, in the optimizer's order)"
BASE = "--base DIR (the base model: config.json, and its weights if you have them)"
PREVIOUS = "--previous DIR (an earlier adapter of the same run)"
SAME_SAVE = "pass the adapter that was saved with this state: same run, same step"
NOTHING = "no other option can help: only the adapter saved at the same step could decide it"


class GivenOptions(NamedTuple):
    """Options that were passed or found already; None: not there."""

    adapter: object
    order: object
    base: object
    previous: object
    evidence: bool
    """False under `--no-evidence`."""


def given(question: Question) -> GivenOptions:
    """Return which of the options a question has already."""
    return GivenOptions(adapter=question.adapter, order=question.order, base=question.base, previous=question.previous, evidence=question.evidence)


def ways(there: GivenOptions, *wanted: str) -> str:
    """Return `pass A, B or C`: those of the ways that are `wanted` and not there yet, or that none is left.

    Without an adapter the tensor values cannot be compared, and neither a base model nor an earlier adapter helps: --adapter comes first then.

    Args:
        there: what is there already.
        wanted: of ORDER, BASE, PREVIOUS, the best first.
    """
    known = {ADAPTER: there.adapter, ORDER: there.order, BASE: there.base, PREVIOUS: there.previous}
    if there.adapter is None:
        wanted = (ADAPTER, *(way for way in wanted if way == ORDER))
    left = [way for way in wanted if known[way] is None]
    if not there.evidence:
        return "drop --no-evidence"
    return f"pass {' or '.join([', '.join(left[:-1]), left[-1]] if left[1:] else left)}" if left else NOTHING
