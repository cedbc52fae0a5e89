"""What a person may add to what the files say, of each command that names a state."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import PurePath
from typing import TypedDict

from ostate.core.brief import brief
from ostate.core.file_digest import sha256_of_file, sha256_of_place
from ostate.ordering.name_form import NameForm

_PATHS = ("adapter", "base", "model", "previous", "state")
_LOOKED_INTO = ("adapter", "base", "model", "previous")
"""Paths whose contents say what the names become; the state's own files stand in the manifest."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Options:
    """What a person may add to what the files say."""

    adapter: str | None = None
    """Folder or file of the trained weights; None: looked for beside the state and inside it."""
    base: str | None = None
    """Folder or config.json of the base model."""
    model: str | None = None
    """Folder with full weights, where there is no adapter (full fine-tuning)."""
    order: str | None = None
    """File of names, one a line, in the optimizer's order."""
    previous: str | None = None
    """Folder or file of an earlier adapter of the same run."""
    adapter_name: str | None = None
    """The adapter's name in the live model, where the files do not record it."""
    names: NameForm = "live"
    """Which form of the names is written, where the adapter's keys and the live names differ."""
    state: str | None = None
    """Which file of the folder is the state."""
    optimizer: int | str | None = None
    """Which optimizer, where the file holds several."""
    step: int | None = None
    """Updates taken, where the file does not record them."""
    betas: tuple[float, float] | None = None
    """Adam's betas, where the file does not record them."""
    eps: float | None = None
    """Adam's eps, where the file does not record it."""
    evidence: bool = True
    """False: no tensor value is compared, and the names stay unverified."""
    strict: bool = False
    """Refuse instead of writing only the proven names."""
    checksum: bool = False
    """Compare every byte of the state with the checksums that were saved with it, before anything else."""

    def __repr__(self) -> str:
        return brief(self)


class NamingFields(TypedDict, total=False):
    """The fields of `Options` under the names that the command line has for them."""

    adapter: str | None
    base: str | None
    model: str | None
    order: str | None
    previous: str | None
    adapter_name: str | None
    names: NameForm
    state: str | None
    optimizer: int | str | None
    step: int | None
    betas: tuple[float, float] | None
    eps: float | None
    strict: bool
    checksum: bool


class OptionFields(NamingFields, total=False):
    """All fields of `Options`, by which a call names some of them."""

    evidence: bool


def passed_to(options: Options, **how: bool) -> dict[str, object]:
    """Return the fields of the manifest's `source` that tell what was passed: `options`, and `option_files` where paths are among them.

    Args:
        options: of naming.
        how: of writing, such as `keep_dtype`.

    Raises:
        ReadError: the order file cannot be read, or a folder not be listed.
    """
    passed = {"options": _passed_values(options, how), "option_files": _passed_places(options)}
    return {field: value for field, value in passed.items() if value}


def _passed_values(options: Options, how: Mapping[str, bool]) -> dict[str, object]:
    """Return the options that are not at their defaults: an order file by its SHA-256, other paths by their last part."""
    found: dict[str, object] = {name: True for name, given in how.items() if given}
    for field in fields(Options):
        value = getattr(options, field.name)
        if value == field.default or field.name == "checksum":  # it compares, and changes nothing
            continue
        if field.name == "order":
            value = sha256_of_file(str(value))
        elif field.name in _PATHS:
            value = PurePath(os.path.abspath(str(value))).name
        found[field.name] = value
    return found


def _passed_places(options: Options) -> dict[str, str]:
    """Return the SHA-256 of what lies at each path, since two folders may have one name."""
    return {name: sha256_of_place(path) for name in _LOOKED_INTO if (path := getattr(options, name)) is not None}
