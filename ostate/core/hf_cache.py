"""Where huggingface_hub keeps a model that was downloaded before. Nothing is imported from it, nothing is fetched."""

from __future__ import annotations

import os
import re
from pathlib import Path


def snapshot(repository: str, revision: str = "main") -> str:
    """Return the folder in the local cache that holds a model at a revision; it may not be there.

    The layout is hub/models--OWNER--NAME/snapshots/COMMIT, and refs/REVISION names the commit (huggingface_hub, "Understand caching").

    Args:
        repository: `org/name`.
        revision: a branch, a tag, or a commit.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    place = os.path.join(hub, "models--" + repository.strip("/").replace("/", "--"))
    return os.path.join(place, "snapshots", _commit(os.path.join(place, "refs", revision)) or revision)


def local_model(text: str) -> str:
    """Return the folder of a model given as `org/name`, where the local cache holds it; any other text, and what is a path, as it is."""
    if os.path.exists(text) or not is_repository(text):
        return text
    folder = snapshot(text)
    return folder if os.path.isdir(folder) else text


def is_repository(text: str) -> bool:
    """True for what has the form `org/name`."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None


def _commit(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as stream:
            return stream.read(100).strip()
    except (OSError, ValueError):
        return None  # no such revision in the cache: the folder simply does not exist
