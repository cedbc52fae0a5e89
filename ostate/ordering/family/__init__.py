"""What a program can have made in place of a claimed order, as data: one row of `ROWS` for each way in which orders of programs differ.

An alternative is exactly refuted, and left away, where it would give a position a tensor of another shape. What is left is for the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from operator import itemgetter
from typing import NamedTuple, get_args

from ostate.core.family import Alternative, Exchangeable, Family
from ostate.core.foreign import release
from ostate.core.naming import Claim, ClaimSource, Question

from ..grouping.place import Placed, stamp
from ..sources.rebuilt.cache import versions
from . import factors, kinds, layers, recorded
from .grouping import as_listed, by_other_claims, by_rules, layouts_behind
from .layers import Arrangement
from .misplaced import misplaced
from .names import plain
from .sequence import ClaimRows, sequence_of

MOST_ALTERNATIVES = 256
"""Orders in one family; `Family.cut` counts what is left out beyond."""
ANY: frozenset[ClaimSource] = frozenset(get_args(ClaimSource))
"""A new source leaves all of this open until a row says otherwise: one that no row knew of would be proven against nothing."""
KEYS_ONLY = ANY - {"skeleton"}
"""The file or a person lists names: components may stand in another order than in the model."""
UNKNOWN_DEFINITION = KEYS_ONLY - {"adapter-order"}
"""Sources that do not know the order in which the model defines its modules."""
LISTED = UNKNOWN_DEFINITION - {"convention"}
"""Sources that are a list of names, written down by a person or a program."""


class FamilyRow(NamedTuple):
    """One way in which the orders of programs differ."""

    name: str
    sources: frozenset[str]
    """Claims of these sources leave it open."""
    make: Callable[[ClaimRows, Question], Iterator[Arrangement]]
    fault: bool = False
    """As `Alternative.fault`."""


ROWS: tuple[FamilyRow, ...] = (
    FamilyRow("layer order", ANY, lambda sequence, _: layers.layer_orders(sequence)),
    FamilyRow("factor order", ANY, lambda sequence, _: factors.factor_orders(sequence)),
    FamilyRow("adapters", ANY, lambda sequence, _: factors.adapter_orders(sequence)),
    FamilyRow("groups exchanged", ANY, lambda sequence, _: recorded.groups_exchanged(sequence), fault=True),
    FamilyRow("reversed", ANY, lambda sequence, _: recorded.reversed_orders(sequence), fault=True),
    FamilyRow("names sorted", ANY, lambda sequence, _: recorded.sorted_names(sequence)),
    FamilyRow("names exchanged", LISTED, lambda sequence, _: misplaced(sequence)),
    FamilyRow("components", frozenset(["adapter-order"]), lambda sequence, _: kinds.components_exchanged(sequence)),
    FamilyRow("kinds exchanged", ANY, lambda sequence, question: _kinds_exchanged(sequence, question), fault=True),
    FamilyRow("siblings", UNKNOWN_DEFINITION, lambda sequence, _: kinds.siblings_exchanged(sequence), fault=True),
    FamilyRow("other conventions", UNKNOWN_DEFINITION, lambda sequence, question: kinds.by_other_conventions(sequence, question.adapter)),
    FamilyRow("layers rotated", ANY, lambda sequence, _: layers.layers_rotated(sequence), fault=True),
    FamilyRow("shifted", ANY, lambda sequence, _: recorded.shifted(sequence), fault=True),
)
"""Besides these: every grouping rule on the layouts behind the claim, and every other claim."""


def family_of(claim: Claim, others: Sequence[Claim], question: Question) -> Family:
    """Return every order that a program could have made in place of this one.

    Args:
        claim: the order in question.
        others: the other claims that stand.
        question: the state, the adapter and what else is at hand.

    Reads no number and rebuilds no model beyond the one that a skeleton's claim was made from.
    """
    claim = as_first_made(claim, question)
    sequence = sequence_of(claim, question.raw, question.adapter)
    if not sequence.rows:
        return Family((), ())
    found = _Distinct(sequence)
    open_kinds = kinds.exchangeable(sequence, question.adapter) if claim.source == "convention" else ()
    for _, order in kinds.pairs_within(sequence, open_kinds):
        found.leave_out(*sequence.arranged(order))
    for what, (names, keys) in _whole_orders(sequence, others, question):
        found.add(what, keys, names)
    for row in ROWS:
        if claim.source in row.sources:
            for what, order in row.make(sequence, question):
                if sequence.fit(order):
                    found.add(what, *sequence.arranged(order), fault=row.fault)
    return Family(tuple(found.kept), open_kinds, found.cut)


def _kinds_exchanged(sequence: ClaimRows, question: Question) -> Iterator[Arrangement]:
    """Yield every two kinds exchanged, unless the model was rebuilt by the very release that the checkpoint says it was trained with.

    Another release may define them in another order. The same one does not.
    """
    trained_with, _ = stamp(question)
    if sequence.claim.source != "skeleton" or trained_with is None or trained_with != release(versions()["transformers"]):
        yield from kinds.kinds_exchanged(sequence)


def as_first_made(claim: Claim, question: Question) -> Claim:
    """Return the claim under the source that its names came from: what `repair` wrote is recorded, but was first claimed by something else."""
    named_by = question.raw.facts.get("named_by")
    source = next((known for known in ANY if known == named_by), None)
    return replace(claim, source=source) if source is not None and claim.source == "recorded" and question.raw.layout == "named" else claim


def _whole_orders(sequence: ClaimRows, others: Sequence[Claim], question: Question) -> Iterator[tuple[str, Placed]]:
    layouts = layouts_behind(sequence.claim, question)
    if sequence.claim.source in LISTED or not layouts:
        layouts.append(as_listed(sequence))
    return chain(by_other_claims(others), by_rules(layouts, question))


class _Distinct:
    """Collects alternatives that differ from the claim and from each other where there is state."""

    def __init__(self, sequence: ClaimRows) -> None:
        self.kept: list[Alternative] = []
        self.cut = 0
        self._pick = itemgetter(*sequence.positions, sequence.positions[0])  # twice the first: a tuple even of one
        self._seen: dict[int, list[tuple[str | None, ...]]] = {}
        self._plain: dict[str | None, str | None] = {None: None}  # every order gives the same names to other positions
        self.leave_out(sequence.claim.keys, sequence.claim.names)

    def leave_out(self, keys: tuple[str | None, ...], names: tuple[str | None, ...]) -> None:
        """Leave out an order that another alternative already stands for."""
        self._is_new(keys, names)

    def add(self, what: str, keys: tuple[str | None, ...], names: tuple[str | None, ...], *, fault: bool = False) -> None:
        """Keep an order unless the claim or another alternative says the same of every position with state."""
        if not self._is_new(keys, names):
            return
        if len(self.kept) < MOST_ALTERNATIVES:
            self.kept.append(Alternative(what, keys, names, fault))
        else:
            self.cut += 1

    def _is_new(self, keys: tuple[str | None, ...], names: tuple[str | None, ...]) -> bool:
        said = self._pick(keys)
        if None in said:  # names may differ in form alone
            said = tuple([key or self._plain_name(name) for key, name in zip(said, self._pick(names))])
        alike = self._seen.setdefault(hash(said), [])
        if said in alike:
            return False
        alike.append(said)
        return True

    def _plain_name(self, name: str | None) -> str | None:
        if name not in self._plain:
            self._plain[name] = plain(name) if name else None
        return self._plain[name]


__all__ = ["MOST_ALTERNATIVES", "ROWS", "Alternative", "Exchangeable", "Family", "FamilyRow", "family_of"]
