"""Every exception of ostate, in one tree.

OstateError                    what, where, fix; exit code 3
├── OutOfMemory                memory or address space ran out; a MemoryError too
├── MissingPackage             a package that this needs is not installed; an ImportError too
├── ReadError                  a file cannot be read as what it should be
│   ├── UnknownFormat          no reader, or more than one, knows this layout
│   │   └── SeveralOptimizers  several optimizers, of which any may be meant
│   └── UnsafePickle           the file asks for something outside the allow-list
├── OrderingError              positions cannot be given names
│   ├── Ambiguous              several orders fit and nothing decides
│   └── Contradiction          the numbers contradict the names
├── CheckError                 a state breaks a rule
├── StoreError                 a named file cannot be written, or is not sound
├── ExportError                a state cannot be given in another layout without loss
└── ProbeError                 a live model or gradient does not fit the state
    └── ProbeTypeError         an argument of another kind than the one wanted; a TypeError too
"""

from __future__ import annotations

import errno
import os
from functools import wraps
from types import MappingProxyType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

EXTRAS = {
    # a package that only some commands need -> the smallest extra of pyproject.toml that brings it
    "torch": "ostate[probe]", "peft": "ostate[base]", "transformers": "ostate[base]", "safetensors": "ostate[base]",
    "accelerate": "ostate[demo]", "fsspec": "ostate[remote]", "matplotlib": "ostate[plot]", "diffusers": "ostate[diffusion]",
    "yaml": "pyyaml",
}  # fmt: skip
_NEEDED = frozenset({"click", "jsonschema", "numpy", "rich"})
"""What `pip install ostate` brings."""
_NO_MEMORY = (
    "failed to map segment from shared object", "cannot allocate memory", "can't allocate memory", "can't start new thread", "out of memory",
    "error return without exception set", "std::bad_alloc", "cannot create thread-local", "unable to allocate",
)  # fmt: skip
"""What the loader of shared libraries, the interpreter, numpy and torch say where memory is short and the error is no MemoryError."""
_MORE = "give it more memory (`ulimit -v`, a container's limit), close other programs, or use a machine with more"
FORESEEN = (MemoryError, ImportError, OSError, RuntimeError, SystemError, ValueError)
"""Kinds among which `refusal_for` may know one."""
_VARKEYWORDS = 8
"""The flag of a function's code that takes any keyword (`inspect.CO_VARKEYWORDS`)."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


MOST_REASONS = 3
"""Reasons that a refusal shows before all are asked for."""


class OstateError(Exception):
    """An expected refusal: says what is wrong, where, and what to do.

    Args:
        what: one sentence, no file names.
        where: file, tensor or position.
        fix: what the person can do next.
        why: the reasons in detail, the most important first; a screen shows the first `MOST_REASONS`.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "", why: Sequence[str] = ()) -> None:
        super().__init__(what, where, fix)
        self.what = what
        self.where = where
        self.fix = fix
        self.why = tuple(why)

    def __reduce__(self) -> tuple[Callable[..., OstateError], tuple[type[OstateError], str, str, str]]:
        """Tell pickle how it is made anew: a refusal may rise in one process and be read in another."""
        return _again, (type(self), self.what, self.where, self.fix)

    def at(self, where: str) -> OstateError:
        """Put an outer place in front of `where` as the error rises; returns itself."""
        self.where = f"{where}: {self.where}" if self.where else where
        return self

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  at:  {self.where}")
        lines += [f"  -    {reason}" for reason in self.why[:MOST_REASONS]]
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


def _again(kind: type[OstateError], what: str, where: str, fix: str) -> OstateError:
    return kind(what, where=where, fix=fix)


class OutOfMemory(OstateError, MemoryError):
    """Memory, or address space under `ulimit -v`, ran out."""


class MissingPackage(OstateError, ImportError):
    """A package that only some commands need is not installed; `fix` names the extra that brings it."""


class ReadError(OstateError):
    """A file cannot be read as what it should be."""


class UnknownFormat(ReadError):
    """No reader, or more than one, knows this layout."""


class SeveralOptimizers(UnknownFormat):
    """Several optimizers, of which any may be meant."""

    texts: Mapping[int, str] = MappingProxyType({})
    """What `--optimizer` takes for each -> where it lies."""


class UnsafePickle(ReadError):
    """The file asks for something outside the allow-list."""


class OrderingError(OstateError):
    """Positions cannot be given names."""


class Ambiguous(OrderingError):
    """Several orders fit and nothing decides between them."""


class Contradiction(OrderingError):
    """The numbers contradict the names."""


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


def refusal_for(error: BaseException) -> OstateError | None:
    """Return what to tell of an error that is nobody's fault here; None for any other.

    That is memory that ran out, a package that is not installed, a file that vanished or became unreadable between one look and the next.
    """
    if isinstance(error, OstateError):
        return error
    text = str(error)
    memory = isinstance(error, FORESEEN) and any(mark in text.lower() for mark in _NO_MEMORY)
    if isinstance(error, MemoryError) or memory or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        asked = next((line.strip()[:200] for line in text.splitlines() if line.strip()), "no more could be had")
        return OutOfMemory(f"memory ran out: {asked}", fix=_MORE)
    if isinstance(error, OSError) and error.filename is not None and not isinstance(error, BrokenPipeError):
        fix = "another program writes there, or the disk failed: wait until it has finished, and try again"
        return ReadError(f"a file changed or could not be reached meanwhile: {error.strerror}", where=str(error.filename), fix=fix)
    if isinstance(error, FileNotFoundError) and error.filename is None and _folder_is_gone():
        return ReadError("the folder that the program runs in is gone", fix="change to a folder that exists, or pass whole paths")
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return ReadError("a path or a name holds half a character, which no file can hold", where=ascii(error.object)[:200], fix="pass another one")
    if isinstance(error, ValueError) and "embedded null" in text:
        return ReadError("a path holds a character 0, which no file system allows", fix="pass another path")
    return missing_package(error) if isinstance(error, ModuleNotFoundError) else None


def _folder_is_gone() -> bool:
    """Tell whether the folder that the program runs in was removed: then `os.getcwd` fails, and names no file."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def missing_package(error: ImportError, what: str = "this", *, extra: str = "", where: str = "") -> MissingPackage | None:
    """Return what to tell of a package that is not installed; None where the error is about none that ostate knows.

    Args:
        error: as the import raised it.
        what: what needs it, as a sentence begins: "the demo".
        extra: the extra to install, where `what` needs more than the missing package; empty: the one that brings that package.
        where: the file or argument that asked for it.
    """
    name = (error.name or "").partition(".")[0]
    if name not in EXTRAS and name not in _NEEDED:
        return None
    fix = f"ostate[{extra}]" if extra else EXTRAS.get(name, name)
    return MissingPackage(f"{what} needs the package {name}, which is not installed", where=where, fix=f"pip install '{fix}'")


def refusing(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a public function raise `OstateError` where memory runs out or a package is missing, as it does for what it refuses by itself."""
    code = function.__code__
    known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    open_ended = code.co_flags & _VARKEYWORDS

    @wraps(function)
    def bounded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not open_ended and (unknown := next((key for key in kwargs if key not in known), None)) is not None:
            raise TypeError(_no_keyword(function.__name__, unknown, known))
        try:
            return function(*args, **kwargs)
        except FORESEEN as error:
            refusal = refusal_for(error)
            if refusal is None or isinstance(error, OstateError):
                raise
            raise refusal from error

    return bounded


def _no_keyword(function: str, unknown: str, known: tuple[str, ...]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(unknown, known, 1, 0.5)
    return f"{function}() has no argument {unknown!r}{f': did you mean {near[0]!r}?' if near else ''}"
