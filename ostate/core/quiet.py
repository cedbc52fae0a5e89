"""Big libraries talk while they are imported; what they say is about themselves, not about the person's state."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence log records up to WARNING and Python warnings, for the libraries that run inside; errors still raise."""
    import logging  # which they import anyway

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
