"""The parts of a command's output, before they are laid out: lines, facts, tables, findings."""

# No `from __future__ import annotations`: a named tuple compiles each annotation that is text, on every start (docs/performance.md).

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from ostate.core.documents import FindingRow

Tone = Literal["", "title", "good", "warning", "error", "dim", "command"]
"""`command`: to be copied into a shell, and so never wrapped."""

_ORDER = {"error": 0, "warning": 1, "note": 2}


class Line(NamedTuple):
    """One line of words; an empty one parts two blocks."""

    text: str = ""
    tone: Tone = ""


class Facts(NamedTuple):
    """Rows of a short title and a text."""

    rows: tuple[tuple[str, str], ...]


class Table(NamedTuple):
    """Rows under a head; each cell is text already."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class FindingBlock(NamedTuple):
    """One finding: what, which parameters, what to do."""

    severity: Literal["note", "warning", "error"]
    text: str
    names: tuple[str, ...] = ()
    fix: str = ""
    more: int = 0
    """Names that are not listed."""


Block = Line | Facts | Table | FindingBlock


def cells(*values: object) -> tuple[str, ...]:
    """Return a row of a table as text."""
    return tuple(map(str, values))


def found(findings: "Iterable[FindingRow]") -> list[Block]:
    """Return findings (as the schemas describe them) as blocks, the worst first."""
    return [
        FindingBlock(finding["severity"], finding["text"], tuple(finding["names"]), finding["fix"], finding.get("more", 0))
        for finding in sorted(findings, key=lambda one: _ORDER[one["severity"]])
    ]


def read_rows(read: str | None, not_read: Iterable[str]) -> list[tuple[str, str]]:
    """Return what a document says of the state that was read, and of others in the folder that were not; nothing where it names one file alone."""
    return [] if read is None else [("read", read), *(("not read", path) for path in not_read)]
