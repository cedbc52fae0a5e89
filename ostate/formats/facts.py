"""What a checkpoint folder's small files say: steps taken, versions of the libraries that wrote it."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from ostate.files import is_remote

MOST_BYTES = 1 << 26
_MARKS = ("trainer_state.json", "adapter_config.json")
_README = re.compile(r"\b(PEFT|Transformers)\s*:?\s*v?(\d+\.\d+[\w.]*)")


def checkpoint_folder(place: str) -> str:
    """Return the checkpoint folder that `place`, where the state lies, belongs to.

    A state may lie a level or two below it (`optimizer_0`, `global_step5`): the nearest folder with the trainer's files is it, else `place` itself.
    """
    folder = place
    for _ in range(3):
        if is_remote(folder) or any(os.path.isfile(os.path.join(folder, mark)) for mark in _MARKS):
            return folder
        folder = os.path.dirname(os.path.abspath(folder))
    return place


def facts_of(folder: str) -> dict[str, Any]:
    """Return `folder`, `global_step`, `transformers_version`, `peft_version`, as far as the folder's files tell them."""
    facts: dict[str, Any] = {"folder": folder}
    if is_remote(folder):
        return facts
    step = _json(os.path.join(folder, "trainer_state.json")).get("global_step")
    if type(step) is int:
        facts["global_step"] = step
    for file, key in (("config.json", "transformers_version"), ("adapter_config.json", "peft_version")):
        version = _json(os.path.join(folder, file)).get(key)
        if type(version) is str:
            facts[key] = version
    for library, version in _README.findall(_text(os.path.join(folder, "README.md"))):
        facts.setdefault(f"{library.lower()}_version", version)
    return facts


def _text(path: str) -> str:
    try:
        if os.path.getsize(path) > MOST_BYTES:
            return ""
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _json(path: str) -> dict[str, Any]:
    """Return the object in the file; nothing where there is none or it is damaged, since facts are never needed."""
    text = _text(path)
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
