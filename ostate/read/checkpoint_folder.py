"""What a checkpoint folder's small files say: steps taken, versions of the libraries that wrote it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from ostate.core.files import is_file, is_remote, parent, read_at, size_of
from ostate.core.foreign import parse_json
from ostate.errors import ReadError

MOST_BYTES = 1 << 26
_MARKS = ("trainer_state.json", "adapter_config.json")
_HEAD = 1 << 14
_STEP = r'"global_step":\s*(\d{1,15})\b'
_CARD = r"(?im)^[ \t]*-[ \t]{0,9}(PEFT|Transformers|TRL)[ \t]{0,9}:?[ \t]{0,9}v?(\d{1,6}\.\d{1,6}[\w.]{0,40})"
"""A line of the list of versions in a model card: `- PEFT 0.15.2` of peft, `- Transformers: 4.51.3` of transformers. Prose is no record."""


def checkpoint_folder(place: str) -> str:
    """Return the checkpoint folder that `place`, where the state lies, belongs to.

    A state may lie a level or two below it (`optimizer_0`, `global_step5`): the nearest folder with the trainer's files is it, else `place` itself.
    """
    folder = place
    for _ in range(3):
        if any(is_file(os.path.join(folder, mark)) for mark in _MARKS):
            return folder
        folder = parent(folder)
    return place


def facts_of(folder: str) -> dict[str, object]:
    """Return `folder`, `global_step`, `transformers_version`, `peft_version`, as far as the folder's files tell them."""
    facts: dict[str, object] = {"folder": folder}
    step = trainer_step(os.path.join(folder, "trainer_state.json"))
    if step is not None:
        facts["global_step"] = step
    for file, key in (("config.json", "transformers_version"), ("adapter_config.json", "peft_version")):
        version = _json(os.path.join(folder, file), key).get(key)
        if type(version) is str:
            facts[key] = version
    for library, version in card_versions(_text(os.path.join(folder, "README.md"))).items():
        if library != "trl_version":
            facts.setdefault(library, version)
    return facts


def card_versions(text: str) -> dict[str, str]:
    """Return `peft_version`, `transformers_version`, `trl_version`, as far as a model card lists them; the first of each."""
    found: dict[str, str] = {}
    for library, version in re.findall(_CARD, text):
        found.setdefault(f"{library.lower()}_version", version.rstrip("."))
    return found


def trainer_step(path: str) -> int | None:
    """Return the trainer's step; behind a scheme from the file's beginning alone, since the log of a long run takes megabytes."""
    if not is_remote(path):
        step = _json(path, "global_step").get("global_step")
        return step if type(step) is int else None
    found = re.search(_STEP, _text(path, _HEAD).partition('"log_history"')[0])
    return int(found.group(1)) if found else None


def _text(path: str, most: int | None = None) -> str:
    try:
        if not is_file(path) or (size := size_of(path)) > MOST_BYTES:
            return ""
        return read_at(path, 0, size if most is None else min(size, most)).decode("utf-8", "replace")
    except ReadError:
        return ""


def _json(path: str, key: str) -> Mapping[str, object]:
    """Return the object in the file; nothing where there is none, it is damaged, or nobody wrote `key` there, since facts are never needed."""
    text = _text(path)
    if f'"{key}"' not in text:
        return {}
    try:
        found = parse_json(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
