"""Silence what large libraries print while they are imported: it is about themselves, not about the state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from contextvars import ContextVar

SHOW_ALL: ContextVar[bool] = ContextVar("SHOW_ALL", default=False)
"""True under `-v`: nothing is silenced."""


@contextmanager
def quiet(*, prints: bool = True) -> Iterator[None]:
    """Silence log records up to WARNING, Python warnings and, with `prints`, `sys.stderr`, for the libraries that run inside; errors still raise.

    Imports belong inside: torchao prints of each extension that it cannot load, torch of what it will no longer do.
    """
    if SHOW_ALL.get():
        yield
        return
    import logging  # which they import anyway

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()) if prints else nullcontext():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
