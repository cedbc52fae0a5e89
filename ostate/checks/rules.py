"""The table of rules: a row is the switch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ostate.model import Finding

from . import numbers, structure
from .facts import Numbers, Structure

STRUCTURE: tuple[Callable[[Structure], Iterator[Finding]], ...] = (
    structure.no_state_at_all,
    structure.optimizer_over_frozen_parameters,
    structure.parameters_without_a_gradient,
    structure.optimizer_cannot_be_used,
    structure.optimizer_not_recognised,
    structure.quantised_moments,
    structure.codes_posing_as_values,
    structure.half_precision_moments,
    structure.slots_missing,
    structure.shapes_disagree,
    structure.step_is_missing,
    structure.step_is_zero,
    structure.steps_differ,
    structure.step_against_the_trainer,
    structure.learning_rate_is_zero,
    structure.hyperparameters_missing,
    structure.hyperparameters_out_of_range,
    structure.adapter_does_not_fit,
)
"""Rules that need no number."""

NUMBERS: tuple[Callable[[Numbers], Iterator[Finding]], ...] = (
    numbers.values_not_finite,
    numbers.second_moment_is_negative,
    numbers.state_is_cold,
    numbers.parameters_never_moved,
    numbers.second_moment_is_a_copy,
    numbers.parameters_are_copies,
    numbers.second_moment_is_zero_where_the_first_is_not,
    numbers.second_moment_is_below_eps,
    numbers.first_moment_is_out_of_bounds,
    numbers.values_look_like_codes,
    numbers.moments_are_constant,
)
"""Rules on one pass over the numbers."""


Rule = Callable[[Structure], Iterator[Finding]] | Callable[[Numbers], Iterator[Finding]]


def name_of(rule: Rule) -> str:
    """Return a rule's name in findings: its function's, with dashes."""
    return rule.__name__.replace("_", "-")


_ALL: tuple[Rule, ...] = (*STRUCTURE, *NUMBERS)
RULES: dict[str, Rule] = {name_of(rule): rule for rule in _ALL}
"""Every rule by its name in findings."""
