"""Inputs that know the structure of what they damage: a real index or rank's file, its values changed as the input's bytes say.

The bytes are a list of choices, so that whoever grows or shrinks them (atheris, or the mutator of `fuzz/run.py`) grows or shrinks the damage.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 1 << 31, 1 << 40, -(1 << 40), 1 << 62, 10**400, 0.5, -1.0, math.nan, math.inf, "", "x", "0", "a.b", "..",
    "../up", "/x", "²", "9" * 5000, b"", b"x", [], {}, (), [1], {"a": 1}, (1, 2), [[]], "exp_avg", "step", "params", "default",
)  # fmt: skip
"""What a value may become."""
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64)
MOST_EDITS = 4


class Choices:
    """The input's bytes, taken one after another; zeros when they are over."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def below(self, most: int) -> int:
        """Return a whole number from 0 to below `most`, from one byte or two."""
        width = 1 if most <= 256 else 2
        taken = self.data[self.at : self.at + width]
        self.at += width
        return int.from_bytes(taken, "little") % most if most else 0


def damaged(value: Any, choices: Choices) -> Any:
    """Return a copy of the value with one to `MOST_EDITS` places within it changed."""
    whole = [copy.deepcopy(value)]
    for _ in range(1 + choices.below(MOST_EDITS)):
        places = list(_places(whole))
        holder, key = places[choices.below(len(places))]
        _edit(holder, key, choices)
    return whole[0]


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yield (what holds it, key, index or attribute) of every value within lists, mappings and objects with fields."""
    if depth > 12:
        return
    for key, inner in _inner(value):
        yield value, key
        yield from _places(inner, depth + 1)


def _inner(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, list):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if hasattr(value, field.name)]
    return []


def _put(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, (dict, list)):
        holder[key] = value
    else:
        object.__setattr__(holder, key, value)


def _edit(holder: Any, key: Any, choices: Choices) -> None:
    """Change one place: another kind of value, a number near by or far, a tensor's shape or dtype, an entry gone, renamed, doubled or exchanged."""
    here = holder[key] if isinstance(holder, (dict, list)) else getattr(holder, key)
    what = choices.below(8)
    if what <= 1:
        _put(holder, key, copy.deepcopy(ODD[choices.below(len(ODD))]))
    elif isinstance(here, torch.Tensor):
        _put(holder, key, _other_tensor(here, choices))
    elif isinstance(here, (int, float)) and not isinstance(here, bool):
        _put(holder, key, (here + 1, here - 1, here * 2, -here, here + 64, here << 20 if isinstance(here, int) else here * 1e30)[choices.below(6)])
    elif isinstance(here, (tuple, torch.Size)):
        _put(holder, key, _other_tuple(here, choices))
    elif isinstance(here, (dict, list)) and here:
        _edit_many(here, choices)
    elif isinstance(holder, dict) and what <= 4:
        holder[ODD[choices.below(24)]] = holder.pop(key)
    else:
        _put(holder, key, copy.deepcopy(ODD[choices.below(len(ODD))]))


def _other_tuple(here: Any, choices: Choices) -> Any:
    made = list(here)
    at = choices.below(len(made) + 1)
    what = choices.below(4)
    if what == 0 or at == len(made):
        made.append(choices.below(1 << 16) << choices.below(48))
    elif what == 1:
        del made[at]
    elif what == 2:
        made.reverse()
    else:
        made[at] = ODD[choices.below(len(ODD))] if choices.below(2) else choices.below(1 << 16)
    try:
        return type(here)(made)
    except (TypeError, OverflowError, RuntimeError):  # torch.Size holds whole numbers only
        return tuple(made)


def _other_tensor(here: torch.Tensor, choices: Choices) -> Any:
    what = choices.below(7)
    if what == 0:
        return here.to(DTYPES[choices.below(len(DTYPES))])
    if what == 1:
        return here.reshape(-1)[: choices.below(here.numel() + 1)].clone()
    if what == 2:
        return torch.cat([here.reshape(-1)] * (1 + choices.below(3)) + [here.new_zeros(choices.below(9))])
    if what == 3:
        return here.reshape(-1)[:1].expand(1 << choices.below(20)) if here.numel() else here
    if what == 4:
        return here.reshape(1, -1)
    return here.reshape(()) if here.numel() == 1 else here.new_full(here.shape, (math.nan, 0.0, -1.0)[choices.below(3)])


def _edit_many(here: Any, choices: Choices) -> None:
    keys = list(here) if isinstance(here, dict) else list(range(len(here)))
    first, second = keys[choices.below(len(keys))], keys[choices.below(len(keys))]
    what = choices.below(5)
    if what == 0:
        del here[first]
    elif what == 1:
        here[first], here[second] = here[second], here[first]
    elif what == 2:
        here[first] = here[second]
    elif isinstance(here, list):
        here.extend(here[: choices.below(len(here) + 1)]) if what == 3 else here.reverse()
    else:
        here[ODD[choices.below(24)]] = here[first]
