"""Every rule by its name. A new rule is a function and a row of `structure.STRUCTURE` or `numbers.NUMBERS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ostate.core.state import Finding

from .context import Structure, name_of
from .measured import MeasuredState
from .numbers import NUMBERS
from .structure import STRUCTURE

Rule = Callable[[Structure], Iterator[Finding]] | Callable[[MeasuredState], Iterator[Finding]]
_ALL: tuple[Rule, ...] = (*STRUCTURE, *NUMBERS)
RULES: dict[str, Rule] = {name_of(rule): rule for rule in _ALL}
"""Every rule by its name in findings."""
