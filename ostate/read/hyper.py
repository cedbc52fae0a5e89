"""Hyperparameters as a file has them, brought to plain numbers; what is no number where one belongs is a finding."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ostate.core.foreign import expanded
from ostate.core.hyper import KINDS, out_of_range, typed
from ostate.core.state import Finding, Hyper
from ostate.core.tensors import TensorRef

from .pickle.numpy_values import values_of
from .pickle.records import Array, Inert, Named

MOST_ITEMS = 4096
"""Values within one hyperparameter that are kept, at any depth; more is no hyperparameter."""
MOST_SHOWN = 20


def plain_number(value: object) -> object:
    """Return a one-element tensor or array as its number, anything else as it is."""
    if type(value) is TensorRef and value.numel == 1:
        return value.item()
    if type(value) is Array and value.dtype and math.prod(value.shape) == 1:
        return values_of(value)[0]
    return value


def plain_hyper(group: Mapping[str, object]) -> dict[str, object]:
    """Return what can stand in JSON: numbers, texts, short lists and mappings of them; tensors of more than one element are left out."""
    found = {}
    for key, value in group.items():
        if type(key) is not str:
            continue
        if type(value) in {float, int, bool, str, type(None)}:
            found[key] = value
            continue
        kept = _plain(value, 0) if expanded(value, MOST_ITEMS) <= MOST_ITEMS else _DROPPED
        if kept is not _DROPPED:
            found[key] = kept
    return found


_DROPPED = object()


def _plain(value: object, depth: int) -> object:
    value = plain_number(value)
    if type(value) in {float, int, bool, str, type(None)}:
        return value
    if depth > 3:
        return _DROPPED
    if isinstance(value, (list, tuple, set)) and len(value) <= MOST_ITEMS:
        items = [_plain(item, depth + 1) for item in value]
        return _DROPPED if any(item is _DROPPED for item in items) else items
    if type(value) is dict and len(value) <= MOST_ITEMS:
        pairs = {str(key): _plain(item, depth + 1) for key, item in value.items() if type(key) in {str, int}}
        return {key: item for key, item in pairs.items() if item is not _DROPPED}
    if isinstance(value, (Inert, Named)):
        return value.name
    return _DROPPED


def typed_hyper(index: int, group: Mapping[str, object]) -> tuple[Hyper, list[Finding]]:
    """Return a group's hyperparameters as plain, typed values, and what a person should know of those that are none, or not finite.

    Args:
        index: of the group, for messages.
        group: what the file has, without the parameters and their names.
    """
    plain = plain_hyper(group)
    hyper, wrong = typed(plain)
    said = [_wrong(index, key, f"{text}; it was left out") for key, text in wrong.items()]
    said += [_wrong(index, key, text) for key, value in hyper.items() if key in KINDS and (text := out_of_range(key, value))]
    gone = sorted(str(key) for key in group if key not in plain)
    if gone:
        text = f"group {index} also holds {', '.join(gone[:MOST_SHOWN])}, which is not a hyperparameter and was left out"
        said.append(Finding(rule="group-not-plain", severity="note", text=text))
    return hyper, said


def _wrong(index: int, key: str, text: str) -> Finding:
    return Finding(
        rule="hyperparameter-not-a-number",
        severity="error",
        text=f"{key} of group {index} {text}",
        fix="the file is damaged or was written by hand: take another checkpoint, or pass the value to `repair`",
    )
