"""Every exception of ostate, in one tree.

OstateError                    what, where, fix; exit code 3
├── ReadError                  a file cannot be read as what it should be
│   ├── UnknownFormat          no reader, or more than one, knows this layout
│   └── UnsafePickle           the file asks for something outside the allow-list
├── OrderingError              positions cannot be given names
│   ├── Ambiguous              several orders fit and nothing decides
│   └── Contradiction          the numbers speak against the names
├── CheckError                 a state breaks a rule
├── StoreError                 a named file cannot be written, or is not sound
├── ExportError                a state cannot be given in another layout without loss
└── ProbeError                 a live model or gradient does not fit the state
    └── ProbeTypeError         an argument of another kind than the one wanted; a TypeError too
"""

from __future__ import annotations


class OstateError(Exception):
    """An expected refusal: says what is wrong, where, and what to do.

    Args:
        what: one sentence, no file names.
        where: file, tensor or position.
        fix: what the person can do next.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what = what
        self.where = where
        self.fix = fix

    def at(self, where: str) -> OstateError:
        """Put an outer place in front of `where` as the error rises; returns itself."""
        self.where = f"{where}: {self.where}" if self.where else where
        return self

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  at:  {self.where}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class ReadError(OstateError):
    """A file cannot be read as what it should be."""


class UnknownFormat(ReadError):
    """No reader, or more than one, knows this layout."""


class UnsafePickle(ReadError):
    """The file asks for something outside the allow-list."""


class OrderingError(OstateError):
    """Positions cannot be given names."""


class Ambiguous(OrderingError):
    """Several orders fit and nothing decides between them."""


class Contradiction(OrderingError):
    """The numbers speak against the names."""


class CheckError(OstateError):
    """A state breaks a rule that makes it unusable."""


class StoreError(OstateError):
    """A named file cannot be written, or is not sound."""


class ExportError(OstateError):
    """A state cannot be given in another layout without loss."""


class ProbeError(OstateError):
    """A live model, optimizer or gradient does not fit the state."""


class ProbeTypeError(ProbeError, TypeError):
    """An argument of another kind than the one wanted."""
