"""What the core does without: packages that only some commands need, and the extra of ostate that brings each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ostate.errors import MissingPackage

EXTRAS: dict[str, str] = {
    # package -> the smallest extra of pyproject.toml that brings it
    "torch": "probe",
    "peft": "base",
    "transformers": "base",
    "safetensors": "base",
    "accelerate": "demo",
    "fsspec": "remote",
    "matplotlib": "plot",
}


@contextmanager
def needed(what: str, extra: str = "", where: str = "") -> Iterator[None]:
    """Import packages inside; say which extra brings one that is not installed.

    Args:
        what: what needs it, as a sentence begins: "the demo".
        extra: the extra to install, where `what` needs more than the missing package; empty: the one that brings that package.
        where: the file or argument that asked for it.

    Raises:
        MissingPackage: a package of `EXTRAS` is not installed.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        fix = f"pip install 'ostate[{extra or EXTRAS[package]}]'"
        raise MissingPackage(f"{what} needs {package}, which is not installed", where=where, fix=fix) from error
