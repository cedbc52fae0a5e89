"""The comparison where no tensor value is read: every answer is `silent`, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ostate.core.naming import ALL_TESTS, Claim, Evidence
from ostate.core.state import RawState

if TYPE_CHECKING:
    from ostate.core.family import Alternative, Family


class Untested:
    """A state whose numbers are not read. Needs no numpy."""

    def __init__(self, raw: RawState, reason: str) -> None:
        """Take the state and why its numbers are not read."""
        self.untested: str | None = reason
        self._silence = Evidence(verdict="silent", undecided=stated(raw), silent={ALL_TESTS: reason})

    def test(self, claim: Claim, family: Family, *, tries: int = 1) -> Evidence:
        """Return silence."""
        del claim, family, tries
        return self._silence

    def better(self, claim: Claim, family: Family) -> Alternative | None:
        """Return None: nothing is proven against a claim."""
        del claim, family
        return None

    def search(self, claim: Claim) -> Evidence:
        """Return silence."""
        del claim
        return self._silence

    def recover(self) -> Evidence:
        """Return silence."""
        return self._silence


def stated(raw: RawState) -> tuple[int, ...]:
    """Return the positions with state."""
    return tuple(entry.position for entry in raw.entries if entry.has_state)
