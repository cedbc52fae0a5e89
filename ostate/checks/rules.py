"""Every rule by its name. A new rule is a function and a row of `structure.STRUCTURE` or `numbers.NUMBERS`."""

from __future__ import annotations

from .facts import Rule, name_of
from .numbers import NUMBERS
from .structure import STRUCTURE

_ALL: tuple[Rule, ...] = (*STRUCTURE, *NUMBERS)
RULES: dict[str, Rule] = {name_of(rule): rule for rule in _ALL}
"""Every rule by its name in findings."""
