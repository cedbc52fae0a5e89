"""How trainers cut a model's parameters into groups: one row a rule, with the line of source it was read in."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ostate.model import Claim, Question

from .parameters import Layout, Parameter
from .refute import Refused, positions_of, refused, refute_groups, refute_positions

Groups = list[list[Parameter]]
Split = Callable[[Sequence[Parameter]], Groups]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One maker of groups."""

    name: str
    split: Split
    source: str
    no_decay: tuple[int, ...] = ()
    """Groups whose weight decay is zero whatever the user asks for."""
    same_lr: tuple[tuple[int, ...], ...] = ()
    """Groups that share one learning rate."""


def trainable(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Return what requires grad, in definition order."""
    return [parameter for parameter in parameters if parameter.trainable]


def _decay_e3(parameter: Parameter) -> bool:
    return "LayerNorm" not in parameter.classes and not _E3_NAMES.search(parameter.name.lower())


_E3_NAMES = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def _two(decay: Callable[[Parameter], bool]) -> Split:
    def split(parameters: Sequence[Parameter]) -> Groups:
        own = trainable(parameters)
        return [[parameter for parameter in own if decay(parameter)], [parameter for parameter in own if not decay(parameter)]]

    return split


RULES: tuple[Rule, ...] = (
    Rule(name="one group of all trainables", split=lambda parameters: [trainable(parameters)], source="torch.optim"),
    Rule(
        name="Trainer of transformers >= 4.53",
        split=_two(_decay_e3),
        no_decay=(1,),
        same_lr=((0, 1),),
        source="transformers 5.23 trainer.py:1272-1286, 1408-1418; trainer_pt_utils.py:1348-1369",
    ),
)


def claims_of(layout: Layout, question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return one claim for every order that some rule gives and nothing refutes, and the rules that were refuted."""
    claims: dict[tuple[tuple[str | None, ...], tuple[str | None, ...]], list[str]] = {}
    lost = []
    for rule in RULES:
        outcome = _lay_out(layout, rule, question)
        if isinstance(outcome, str):
            lost.append(refused(layout.source, rule.name, outcome))
        else:
            claims.setdefault(outcome, []).append(rule.name)
    found = [
        Claim(source=layout.source, rule=f"{layout.rule}; {', '.join(rules)}", names=names, keys=keys)  # type: ignore[arg-type]
        for (names, keys), rules in claims.items()
    ]
    return found, lost


def _lay_out(layout: Layout, rule: Rule, question: Question) -> tuple[tuple[str | None, ...], tuple[str | None, ...]] | str:
    raw = question.raw
    groups = rule.split(layout.parameters)
    why = refute_groups(raw, [len(group) for group in groups], rule.no_decay, rule.same_lr)
    if why:
        return why
    placed = dict(zip(positions_of(raw), (parameter for group in groups for parameter in group)))
    rows = [placed[entry.position] for entry in raw.entries]
    frozen = next((entry.position for entry, row in zip(raw.entries, rows) if entry.has_state and not row.trainable), None)
    if frozen is not None:
        return f"position {frozen} has state, {rows[frozen].name} is frozen"
    names, keys = tuple(row.name for row in rows), tuple(row.key if row.trainable else None for row in rows)
    return refute_positions(raw, names, keys, [row.shape for row in rows], question.adapter) or (names, keys)
