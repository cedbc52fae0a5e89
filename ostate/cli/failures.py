"""How a command ends on an error: a refusal with exit code 3, a bug of ostate's with exit code 70 and three lines."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from ostate import __version__
from ostate.core.system import most_address_space, raise_at_sigterm
from ostate.errors import OstateError, OutOfMemory, refusal_for

from .screen import say_error

PACKAGE = Path(__file__).parent.parent
"""What is ours of a traceback: a clone may lie in a folder called ostate too, with the tests in it."""
REFUSED = 3
FAULT = 70
"""EX_SOFTWARE of sysexits.h: an internal error. 1 would say that the command completed with warnings."""
INTERRUPTED = 130
"""128 + SIGINT, as shells say it."""
TERMINATED = 143
"""128 + SIGTERM."""
LEAST_ADDRESS_SPACE = 192 << 20
"""Bytes under `ulimit -v` below which numpy's own BLAS ends the process with words of its own while it is imported."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: what a scheduler sends when a job's time is over. Raised like Ctrl-C, so that what was not finished is taken away."""


def end_at_sigterm() -> None:
    """Let SIGTERM end the program as Ctrl-C does, where nobody else has said what it should do."""
    raise_at_sigterm(Terminated)


def say(error: Exception) -> int:
    """Print what ended the command to stderr, and return its exit code."""
    refusal = refusal_for(error)
    with suppress(OSError):  # nobody can be reached where stderr is full or closed; the exit code still says it
        say_error(_fault(error) if refusal is None else refusal, error, exit_code=FAULT if refusal is None else REFUSED)
    return FAULT if refusal is None else REFUSED


def _fault(error: Exception) -> OstateError:
    """Return the three lines about an exception that nobody foresaw."""
    text = (str(error).splitlines() or [""])[0]
    what = f"ostate itself failed, and it is not your fault: {type(error).__name__}{': ' if text else ''}{text}"
    trace = error.__traceback__
    place = ""
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE):
            place = f"ostate/{file.relative_to(PACKAGE).as_posix()}:{trace.tb_lineno}, "
        trace = trace.tb_next
    version = ".".join(map(str, sys.version_info[:3]))
    fix = "please report it where you got ostate, with what the same command prints under -v (the traceback)"
    return OstateError(what, where=f"{place}ostate {__version__}, Python {version}", fix=fix)


def settle_memory_and_threads() -> None:
    """Let numpy's BLAS work in one thread, where nobody asked for more, and refuse an address space (`ulimit -v`) that is too small.

    What is multiplied here is small: more threads would spend most of their time waiting for each other, and the processor with them. Each would
    also reserve a buffer of its own, and end the process where address space is short.

    Raises:
        OutOfMemory: too little to work with at all.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    least = most_address_space()
    if least is None:
        return
    if least < LEAST_ADDRESS_SPACE:
        what = f"{least >> 20} MB of address space are too little: ostate needs {LEAST_ADDRESS_SPACE >> 20} MB, and more for large files"
        raise OutOfMemory(what, where="`ulimit -v`", fix=f"ulimit -v {1 << 20}, which is 1 GB, or `ulimit -v unlimited`")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
