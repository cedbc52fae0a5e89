"""Hyperparameters of a group with the types that their readers rely on: what is of another kind is taken out where the file is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from .state import Hyper

MOST_BITS = 1023
"""Of a whole number: more do not fit a float."""
_NUMBERS = frozenset(
    ["lr", "initial_lr", "weight_decay", "momentum", "alpha", "beta1", "beta2", "beta3", "rho", "max_lr", "min_lr", "d", "d0", "scaling_factor"]
)


def _number(value: object) -> bool:
    return type(value) is float or (type(value) is int and value.bit_length() <= MOST_BITS)


def _number_or_none(value: object) -> bool:
    return value is None or _number(value)


def _number_or_flag(value: object) -> bool:
    return type(value) is bool or _number_or_none(value)


def _number_or_numbers(value: object) -> bool:
    return _number_or_none(value) or (isinstance(value, (list, tuple)) and len(value) > 0 and all(map(_number_or_none, value)))


def _rates(value: object) -> bool:
    return value is None or (isinstance(value, (list, tuple)) and len(value) > 1 and all(map(_number_or_none, value)))


KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(sorted(_NUMBERS), (_number_or_none, "a number is expected")),
    "dampening": (_number_or_flag, "a number is expected"),  # optimi's SGD only switches it
    "eps": (_number_or_numbers, "a number is expected, or several"),  # Adafactor and CAME keep two
    "betas": (_rates, "numbers from 0 to 1 are expected"),
}
"""Key -> what it may be, and how to say that. Of other keys only whether they are true is read; they stay as they are."""


def typed(hyper: Mapping[str, object]) -> tuple[Hyper, dict[str, str]]:
    """Return the hyperparameters whose kind is right, and key -> what is wrong with each of the others.

    Args:
        hyper: plain values, as JSON could hold them.
    """
    kept: dict[str, object] = {}
    wrong: dict[str, str] = {}
    for key, value in hyper.items():
        fits, words = KINDS.get(key, (_holdable, "a number that a float can hold is expected"))
        if fits(value):
            kept[key] = value
        else:
            wrong[key] = f"is {shown(value)}; {words}"
    return kept, wrong


def _holdable(value: object) -> bool:
    """False for a whole number that no float can hold, however deep it lies in the value."""
    if isinstance(value, int):
        return value.bit_length() <= MOST_BITS
    if isinstance(value, Mapping):
        return all(map(_holdable, value.values()))
    return all(map(_holdable, value)) if isinstance(value, (list, tuple)) else True


def one_number(hyper: Hyper, key: str, default: float) -> float:
    """Return a hyperparameter that is one number; `default` where it is not there, or is several (Adafactor's `eps`)."""
    value = hyper.get(key)
    return float(value) if isinstance(value, (int, float)) else default


def all_betas(hyper: Hyper) -> tuple[float | None, ...]:
    """Return `betas`, each a number or None; nothing where the group has none."""
    stored = hyper.get("betas")
    return tuple(float(beta) if isinstance(beta, (int, float)) else None for beta in stored) if isinstance(stored, (list, tuple)) else ()


def out_of_range(key: str, value: object) -> str:
    """Return what is wrong with a number of the right kind; nothing where it is one that training could have had."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}, which is not finite"
    if key == "betas" and isinstance(value, (list, tuple)) and not all(beta is None or 0 <= beta <= 1 for beta in value):
        return f"is {shown(value)}; numbers from 0 to 1 are expected"
    return ""


def shown(value: object) -> str:
    """Return the value for a message, cut: Python refuses to write whole numbers of thousands of digits."""
    return "a number of thousands of digits" if isinstance(value, int) and value.bit_length() > MOST_BITS else ascii(value)[:60]
