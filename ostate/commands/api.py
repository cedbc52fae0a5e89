"""`ostate.repair`, `ostate.verify` and `ostate.names`: what a person may add to the files, each as a keyword of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

from ostate.core.hf_cache import local_model
from ostate.core.naming import Ordering
from ostate.errors import refusing
from ostate.ordering.name_form import NameForm

from . import repair as program
from .options import Options
from .repair import Repaired

Path = str | os.PathLike[str]


@refusing
def repair(
    path: Path,
    out: Path | None = None,
    *,
    adapter: Path | None = None,
    base: Path | None = None,
    model: Path | None = None,
    order: Path | None = None,
    previous: Path | None = None,
    adapter_name: str | None = None,
    names: NameForm = "live",
    state: str | None = None,
    optimizer: int | str | None = None,
    step: int | None = None,
    betas: tuple[float, float] | None = None,
    eps: float | None = None,
    evidence: bool = True,
    strict: bool = False,
    checksum: bool = False,
    force: bool = False,
    keep_dtype: bool = False,
    sha256: bool = False,
) -> Repaired:
    """Give the state at `path` its names and write them to `out`.

    Args:
        path: state file or checkpoint folder.
        out: the named file to write; None: a dry run, nothing is written.
        adapter: folder or file of the trained weights; None: looked for beside the state and inside it.
        base: folder or config.json of the base model, or `org/name` of one in the local Hugging Face cache.
        model: folder with full weights, or `org/name`, where there is no adapter (full fine-tuning).
        order: file of names, one a line, in the optimizer's order.
        previous: folder or file of an earlier adapter of the same run: what moved since is evidence.
        adapter_name: the adapter's name in the live model, where the files do not tell.
        names: form of the names: `live`, the adapter file's keys (`file`), or PeftModel's (`peft`).
        state: which file of the folder is the state, where several could be.
        optimizer: which optimizer, where the file holds several: its number from 0, its name, or `all`, all as one state.
        step: updates taken, where the file does not say.
        betas: decay rates, where the file does not say.
        eps: Adam's epsilon, where the file does not say.
        evidence: ask the numbers; without, names are an assumption.
        strict: refuse instead of writing only what is proven.
        checksum: first compare every byte with the checksums that were saved with the state.
        force: replace an existing output.
        keep_dtype: leave 16-bit moments as they are; otherwise everything becomes float32.
        sha256: record a SHA-256 of every tensor in place of a CRC32.

    Raises:
        ReadError, OrderingError, CheckError, StoreError: refused; nothing is written.
    """
    _refuse_other_kinds(adapter_name=adapter_name, names=names, state=state, optimizer=optimizer)
    files = _of_files(adapter, base, model, order, previous)
    which = replace(files, adapter_name=adapter_name, names=names, state=state, optimizer=optimizer)
    _refuse_other_kinds(step=step, betas=betas, eps=eps)
    options = replace(which, step=step, betas=betas, eps=eps, evidence=evidence, strict=strict, checksum=checksum)
    target = None if out is None else os.fsdecode(out)
    return program.repair(os.fsdecode(path), target, options=options, force=force, keep_dtype=keep_dtype, sha256=sha256)


@refusing
def verify(
    path: Path,
    *,
    adapter: Path | None = None,
    base: Path | None = None,
    model: Path | None = None,
    order: Path | None = None,
    previous: Path | None = None,
    adapter_name: str | None = None,
    names: NameForm = "live",
    state: str | None = None,
    optimizer: int | str | None = None,
    evidence: bool = True,
    strict: bool = False,
    checksum: bool = False,
) -> Ordering:
    """Tell whether the numbers of the state at `path` belong to the adapter under the names that are claimed.

    A named file is judged by its own names; any other layout by the claims that `repair` would weigh.

    Args:
        path: a named file, a state file, or a checkpoint folder.
        adapter: as for `repair`, like all that follow.
        base: the base model.
        model: full weights.
        order: a list of names.
        previous: an earlier adapter.
        adapter_name: the adapter's name in the live model.
        names: form of the names: `live`, the adapter file's keys (`file`), or PeftModel's (`peft`).
        state: which file of the folder.
        optimizer: which optimizer of the file, or `all`.
        evidence: ask the numbers.
        strict: refuse where not all is proven.
        checksum: compare checksums first.

    Raises:
        Contradiction: they do not.
        CheckError: one parameter's moments stand twice.
    """
    _refuse_other_kinds(adapter_name=adapter_name, names=names, state=state, optimizer=optimizer)
    files = _of_files(adapter, base, model, order, previous)
    which = replace(files, adapter_name=adapter_name, names=names, state=state, optimizer=optimizer)
    options = replace(which, evidence=evidence, strict=strict, checksum=checksum)
    return program.verify(os.fsdecode(path), options=options)


@refusing
def names(
    path: Path,
    *,
    adapter: Path | None = None,
    base: Path | None = None,
    model: Path | None = None,
    order: Path | None = None,
    previous: Path | None = None,
    adapter_name: str | None = None,
    names: NameForm = "live",
    state: str | None = None,
    optimizer: int | str | None = None,
    evidence: bool = True,
    strict: bool = False,
    checksum: bool = False,
) -> tuple[list[tuple[int, str, str]], bool]:
    """Return (position, name, shape) for every position that gets a name, and whether all of them are proven.

    Args:
        path: a named file, a state file, or a checkpoint folder.
        adapter: as for `repair`, like all that follow.
        base: the base model.
        model: full weights.
        order: a list of names.
        previous: an earlier adapter.
        adapter_name: the adapter's name in the live model.
        names: form of the names: `live`, the adapter file's keys (`file`), or PeftModel's (`peft`).
        state: which file of the folder.
        optimizer: which optimizer of the file, or `all`.
        evidence: ask the numbers.
        strict: refuse where not all is proven.
        checksum: compare checksums first.

    Raises:
        OrderingError: no order can be settled.
        CheckError: one parameter's moments stand twice.
    """
    _refuse_other_kinds(adapter_name=adapter_name, names=names, state=state, optimizer=optimizer)
    files = _of_files(adapter, base, model, order, previous)
    which = replace(files, adapter_name=adapter_name, names=names, state=state, optimizer=optimizer)
    options = replace(which, evidence=evidence, strict=strict, checksum=checksum)
    return program.names(os.fsdecode(path), options=options)


def _refuse_other_kinds(**given: object) -> None:
    """Refuse an argument of another kind where it is passed, and not where it is used.

    Raises:
        TypeError: one is.
    """
    for name, value in given.items():
        fits, words = _KINDS[name]
        if value is not None and not fits(value):
            raise TypeError(f"{name}={value!r:.80}: {words} is expected")


def _is_number(value: object) -> bool:
    return hasattr(type(value), "__float__")  # numpy's numbers too


def _is_pair(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value))


_KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "adapter_name": (lambda value: isinstance(value, str), "a text"),
    "names": (lambda value: isinstance(value, str) and value in get_args(NameForm), f"one of {', '.join(get_args(NameForm))}"),
    "state": (lambda value: isinstance(value, (str, os.PathLike)), "the name of a file"),
    "optimizer": (lambda value: isinstance(value, str) or hasattr(type(value), "__index__"), "a number from 0, or a name"),
    "step": (lambda value: hasattr(type(value), "__index__"), "a whole number"),
    "betas": (_is_pair, "a pair of numbers"),
    "eps": (_is_number, "a number"),
}
"""Argument -> what it may be besides None, and how to say that."""


def _of_files(adapter: Path | None, base: Path | None, model: Path | None, order: Path | None, previous: Path | None) -> Options:
    """Return the options that are files, as text; of models, `org/name` as the folder where the local cache holds it."""
    base_at, model_at = (None if path is None else local_model(os.fsdecode(path)) for path in (base, model))
    adapter_at, order_at, previous_at = (None if path is None else os.fsdecode(path) for path in (adapter, order, previous))
    return Options(adapter=adapter_at, base=base_at, model=model_at, order=order_at, previous=previous_at)
