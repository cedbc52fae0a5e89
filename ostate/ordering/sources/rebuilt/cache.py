"""The parameters of a rebuilt model, kept on disk, so that the second repair of an adapter does not import peft."""

from __future__ import annotations

import json
import os
import tempfile
from functools import lru_cache
from pathlib import Path

from ostate.core.files import sha256_of

from .listed import Answer, Request, from_json, to_json

LIBRARIES = ("torch", "transformers", "peft", "diffusers")
SCHEME = 2
"""Raised whenever what is kept changes its meaning."""


@lru_cache(maxsize=1)
def _installed() -> tuple[tuple[str, str], ...]:
    from importlib import metadata  # 25 ms

    found = []
    for library in LIBRARIES:
        try:
            found.append((library, metadata.version(library)))
        except metadata.PackageNotFoundError:
            found.append((library, "absent"))
    return tuple(found)


def versions() -> dict[str, str]:
    """Return the installed versions of the libraries that a skeleton depends on."""
    return dict(_installed())


def folder() -> str:
    """Return the folder of kept skeletons: `$XDG_CACHE_HOME/ostate`, else `~/.cache/ostate`."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser()), "ostate")


def kept(request: Request) -> Answer | None:
    """Return the answer that is kept on the disk for this request; None where there is none, or one that cannot be read."""
    try:
        with open(_path_of(request), encoding="utf-8") as stream:
            return from_json(json.load(stream))
    except (OSError, ValueError, RecursionError):
        return None


def _path_of(request: Request) -> str:
    text = json.dumps([SCHEME, versions(), request.as_json()], sort_keys=True)
    return os.path.join(folder(), f"skeleton-{sha256_of(text.encode())}.json")


def keep(request: Request, answer: Answer) -> None:
    """Keep the answer to this request on the disk. A folder that cannot be written is no error."""
    path = _path_of(request)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), suffix=".tmp")
    except OSError:
        return  # a home that cannot be written costs time, nothing else
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(to_json(answer), stream)
        Path(temporary).replace(path)
    except OSError:
        os.unlink(temporary)
