"""What the core does without: packages that only some commands need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ostate.errors import missing_package


@contextmanager
def needed(what: str, extra: str = "", where: str = "") -> Iterator[None]:
    """Import packages inside; of one that is not installed, say what needs it and which extra brings it. Arguments as of `missing_package`.

    Raises:
        MissingPackage: a package of `errors.EXTRAS` is not installed.
    """
    try:
        yield
    except ImportError as error:
        refusal = missing_package(error, what, extra=extra, where=where)
        if refusal is None:
            raise
        raise refusal from error
