"""Other grouping rules, and other definition orders: the layouts that the claim was made from, cut by every rule, guesses too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ostate.core.naming import Claim, Question

from ..grouping.parameters import Parameter, ParameterList
from ..grouping.place import Placed, placements, said
from ..grouping.rules import RULES
from ..sources.adapter_order import definition_order
from ..sources.convention import orders_by_convention
from ..sources.from_keys import layouts_of_keys, trained_keys
from ..sources.rebuilt.model import layouts_of
from .sequence import ClaimRows


def layouts_behind(claim: Claim, question: Question) -> list[ParameterList]:
    """Return the definition orders that the claim's source has for this adapter, the claim's own among them where it is known."""
    adapter = question.adapter
    if adapter is None:
        return []
    if claim.source == "skeleton":
        layouts = layouts_of(question)
        return [] if isinstance(layouts, str) else layouts
    if claim.source == "adapter-order":
        keys = definition_order(trained_keys(adapter), adapter)
        return [] if isinstance(keys, str) else layouts_of_keys(claim.source, "key order of the adapter file", keys, adapter)
    if claim.source == "convention":
        found = orders_by_convention(trained_keys(adapter))
        return [] if isinstance(found, str) else [layout for rule, keys in found for layout in layouts_of_keys(claim.source, rule, keys, adapter)]
    return []


def as_listed(sequence: ClaimRows) -> ParameterList:
    """Return the claim's own list as a definition order: a program that recorded names may have grouped its parameters otherwise."""
    claim = sequence.claim
    rows = tuple(Parameter(name=row.name, key=row.key, tuner_embedding=row.factor.startswith("lora_embedding_")) for row in sequence.rows)
    return ParameterList(source=claim.source, rule="the list itself", parameters=rows)


def by_rules(layouts: Iterable[ParameterList], question: Question) -> Iterator[tuple[str, Placed]]:
    """Yield every order that some rule makes of one of these layouts and that fits groups and shapes."""
    for layout in layouts:
        for placed, rules in placements(RULES, layout, question)[0].items():
            yield f"the groups of {said(rules)}, parameters as in {layout.rule}", placed


def by_other_claims(others: Sequence[Claim]) -> Iterator[tuple[str, Placed]]:
    """Yield the orders of the other sources' claims."""
    for other in others:
        yield f"the order of {other.rule} ({other.source})", (other.names, other.keys)
