"""Hyperparameters as a file has them, brought to plain numbers; what is no number where one belongs is a finding."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ostate.core.state import Finding
from ostate.core.tensors import TensorRef

from .pickle.numpy_values import values_of
from .pickle.records import Array, Inert, Named

MOST_ITEMS = 4096
"""Items of one hyperparameter that are kept; more is no hyperparameter."""
_REAL = {"lr", "initial_lr", "eps", "weight_decay", "momentum", "dampening", "alpha"}


def plain_number(value: Any) -> Any:
    """Return a one-element tensor or array as its number, anything else as it is."""
    if type(value) is TensorRef and value.numel == 1:
        return value.item()
    if type(value) is Array and value.dtype and math.prod(value.shape) == 1:
        return values_of(value)[0]
    return value


def plain_hyper(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return what can stand in JSON: numbers, texts, short lists and mappings of them; tensors of more than one element are left out."""
    found = {}
    for key, value in group.items():
        if type(value) in {float, int, bool, str, type(None)}:
            found[key] = value
            continue
        kept = _plain(value, 0)
        if kept is not _DROPPED and type(key) is str:
            found[key] = kept
    return found


_DROPPED = object()


def _plain(value: Any, depth: int) -> Any:
    value = plain_number(value)
    if type(value) in {float, int, bool, str, type(None)}:
        return value
    if depth > 3:
        return _DROPPED
    if type(value) in {list, tuple, set} and len(value) <= MOST_ITEMS:
        items = [_plain(item, depth + 1) for item in value]
        return _DROPPED if any(item is _DROPPED for item in items) else items
    if type(value) is dict and len(value) <= MOST_ITEMS:
        pairs = {str(key): _plain(item, depth + 1) for key, item in value.items() if type(key) in {str, int}}
        return {key: item for key, item in pairs.items() if item is not _DROPPED}
    if type(value) in {Inert, Named}:
        return value.name
    return _DROPPED


def wrong_hyper(index: int, hyper: Mapping[str, Any], group: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield a finding for each number that is none, or not finite, and for what was left out."""
    for key in sorted(_REAL & set(hyper)):
        value = hyper[key]
        if key == "eps" and isinstance(value, list) and all(part is None or _is_size(part) for part in value):
            continue  # Adafactor and CAME keep two
        if key == "dampening" and isinstance(value, bool):
            continue  # optimi's SGD only switches it
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            yield _wrong(index, key, f"is {_short(value)}, not a number")
        elif isinstance(value, float) and not math.isfinite(value):
            yield _wrong(index, key, f"is {value}, which is not finite")
    betas = hyper.get("betas")
    if betas is not None and not (isinstance(betas, list) and all(_is_share(beta) for beta in betas)):
        yield _wrong(index, "betas", f"are {_short(betas)}; numbers from 0 to 1 are expected")
    gone = sorted(str(key) for key in group if key not in hyper and key not in {"params", "param_names", "names"})
    if gone:
        text = f"group {index} also holds {', '.join(gone)}, which is not a hyperparameter and was left out"
        yield Finding(rule="group-not-plain", severity="note", text=text)


def _is_size(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def _is_share(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1)


def _short(value: Any) -> str:
    return ascii(value)[:60]


def _wrong(index: int, key: str, text: str) -> Finding:
    return Finding(
        rule="hyperparameter-not-a-number",
        severity="error",
        text=f"{key} of group {index} {text}",
        fix="the file is damaged or was written by hand: take another checkpoint, or pass the value to `repair`",
    )
