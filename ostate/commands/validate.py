"""Is a named file sound, and is the state in it: the `validate` command as a function."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ostate import checks, store
from ostate.core.brief import brief
from ostate.core.files import announce, watched
from ostate.core.naming import NamedState
from ostate.core.state import Finding
from ostate.ordering.join import as_raw
from ostate.store import digesting, validating

from .inspect import stored_bytes

if TYPE_CHECKING:
    from ostate.core.documents import ValidateDocument


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Validation:
    """What was found, and the state itself where the file is sound enough to load."""

    path: str
    deep: bool
    state: NamedState | None
    findings: tuple[Finding, ...]

    def __repr__(self) -> str:
        return brief(self)

    @property
    def sound(self) -> bool:
        """True when no finding is an error."""
        return all(finding.severity != "error" for finding in self.findings)


def validate(path: str | os.PathLike[str], *, deep: bool = False, progress: Callable[[int, int], None] | None = None) -> Validation:
    """Check the file, then the state in it.

    Args:
        path: a named file, an index, or a folder with one of them.
        deep: also read every byte: digests, and the rules on numbers.
        progress: called with (bytes read, about how many there are) while numbers are read.

    Raises:
        ReadError: nothing there.
    """
    found = validating.validate(path)
    if any(finding.severity == "error" for finding in found):
        found = validating.validate(path, deep) if deep else found
        return Validation(path=os.fsdecode(path), deep=deep, state=None, findings=tuple(found))
    state = store.load(path)
    found += checks.structure(as_raw(state)._replace(findings=()))
    if deep:
        from ostate.checks import judging  # only with --deep

        digested, damaged = digesting.digested(path)
        with watched(progress):
            announce(lambda: stored_bytes(digested))
            judged = judging.judged(digested)  # first, since that is what reads the bytes
        if broken := damaged():
            return Validation(path=os.fsdecode(path), deep=deep, state=None, findings=tuple(broken))
        found += judged
    return Validation(path=os.fsdecode(path), deep=deep, state=state, findings=tuple(found))


def as_document(done: Validation) -> ValidateDocument:
    """Return the JSON document that schemas/validate-v1.schema.json describes."""
    state = done.state
    ordering = state.ordering if state is not None else None
    return {
        "document": "ostate-validate",
        "version": 1,
        "source": done.path,
        "read": state.path if state is not None else None,
        "sound": done.sound,
        "deep": done.deep,
        "optimizer": state.optimizer if state is not None else None,
        "parameters": len(state.parameters) if state is not None else None,
        "verdict": ordering.verdict if ordering is not None else None,
        "undecided": list(ordering.undecided) if ordering is not None else [],
        "left_out": list(ordering.left_out) if ordering is not None else [],
        "assumed": list(ordering.assumed) if ordering is not None else [],
        "findings": [finding.as_dict() for finding in done.findings],
    }
