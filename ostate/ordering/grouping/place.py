"""From a definition order to claims: cut it by every rule, lay the groups over the file's positions, refute what does not fit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ostate.core.foreign import release
from ostate.core.names import factor_of
from ostate.core.naming import Claim, Question
from ostate.core.state import Names, RawState

from .cuts import same_rates
from .norms import Span, Version
from .parameters import Parameter, ParameterList
from .refute import Refused, positions_of, refused, refute_groups, refute_positions
from .rules import RULES, Rule, cuts_alike, version_matched
from .subsets import beside_adapter, choices_of, part_of

Placed = tuple[tuple[str | None, ...], tuple[str | None, ...]]
"""(names, keys) by position."""
MOST_GUESSES = 8
"""Guessed orders that are worth asking the numbers about."""


def claims_of(layout: ParameterList, question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return one claim for every order that some rule gives and nothing refutes, and the rules that were refuted.

    Rules that give the same order become one claim that lists them. Guesses are tried only where no other rule fits.
    """
    sure = placements([rule for rule in RULES if not rule.guess], layout, question)
    if sure[0]:
        return _as_claims(layout, question, *sure)
    lost = _as_lost(layout, sure[1])
    parts = list(_parts_of_one_optimizer(layout, question.raw))
    if parts:
        found = [claims_of(part, question) for part in parts]
        return [claim for claims, _ in found for claim in claims], [*lost, *(row for _, rows in found for row in rows)]
    claims, refuted = _claims_of_part(layout, question)
    if not claims:
        claims, guessed = guesses_of(layout, question)
        refuted += guessed
    return claims, [*refuted, *lost]


def _claims_of_part(layout: ParameterList, question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return the claims of a model that was trained in part: one where nothing else is possible, else conventions for the numbers to choose from."""
    part = part_of(layout, question)
    if part is None:
        return [], []
    held = {row.name for row in layout.parameters if row.trainable}
    own = held.issuperset(row.name for row in part.parameters)
    choices = choices_of(part, question) if own else beside_adapter(layout, part, question)
    fits: dict[Placed, list[Rule]] = {}
    reason = choices.reason
    for choice, rules in choices.found.items():
        row_of = dict(choice)
        rows = [row_of[entry.position] for entry in question.raw.entries]
        names = tuple(None if row is None else row.name for row in rows)
        keys = tuple(None if row is None or row.name not in held else row.key for row in rows)
        why = refute_positions(question.raw, names, keys, [None if row is None else row.shape for row in rows], question.adapter)
        if why:
            reason = why
        else:
            fits.setdefault((names, keys), []).extend(rules)
    if not fits:
        return [], [refused(part.source, part.rule, reason)]
    return _as_claims(part, question, fits, {}, guess=len(fits) > 1)


def _parts_of_one_optimizer(layout: ParameterList, raw: RawState) -> Iterator[ParameterList]:
    """Yield the layout without the kinds of parameter that another optimizer trains, or nobody, where as many are left as the state has positions.

    sd-scripts' LoRA-FA saves both factors, and gives the optimizer `lora_up` alone (networks/lora_fa.py); programs with two optimizers give one
    lora_A and the other lora_B, or one the adapter and the other the rest.
    """
    kinds = [_kind(row) for row in layout.parameters]
    wanted, every = len(positions_of(raw)), sum(row.trainable for row in layout.parameters)
    yielded = set[tuple[Parameter, ...]]()
    for kept, said_of in _PARTS.items():
        own = tuple(row for row, kind in zip(layout.parameters, kinds) if row.trainable and kind in kept)
        if len(own) == wanted < every and own not in yielded:
            yielded.add(own)
            yield replace(layout, rule=f"{layout.rule}, {said_of}", parameters=own)


_PARTS = {
    ("B", "rest"): "first factors frozen (LoRA-FA) or in another optimizer",
    ("A", "rest"): "second factors in another optimizer",
    ("B",): "second factors alone in this optimizer",
    ("A",): "first factors alone in this optimizer",
    ("A", "B"): "LoRA's factors alone in this optimizer",
    ("rest",): "all but LoRA's factors in this optimizer",
}
"""Kinds of parameter that one of several optimizers may train -> how that is said. Of two rows that keep the same parameters the first holds."""


def _kind(row: Parameter) -> str:
    factor = factor_of(row.key or row.name)
    return factor[1].removeprefix("embedding_") if factor is not None else "rest"


def guesses_of(layout: ParameterList, question: Question) -> tuple[list[Claim], list[Refused]]:
    """Return the orders that programs make by hand, as conventions: worth asking the numbers about, never worth believing without them."""
    guessed = placements([rule for rule in RULES if rule.guess], layout, question)
    if len(guessed[0]) > MOST_GUESSES:
        return [], [refused(layout.source, "guessed groups", f"{len(guessed[0])} orders fit, too many to decide")]
    return _as_claims(layout, question, *guessed, guess=True)


def claims_over_state(layout: ParameterList, question: Question) -> tuple[list[Claim], list[Refused]]:
    """Lay a layout that knows only what was trained over the positions that have state, where an optimizer held frozen parameters too.

    It fits only when every trained parameter has state, and in one group: then the frozen between them do not disturb the order.
    """
    raw = question.raw
    with_state = [position for position in positions_of(raw) if raw.entries[position].has_state]
    rule = f"{layout.rule}, over the positions with state"
    if len(with_state) != len(layout.parameters) or len(with_state) == len(raw.entries) or sum(bool(group.positions) for group in raw.groups) != 1:
        return [], []
    names: list[str | None] = [None] * len(raw.entries)
    keys: list[str | None] = [None] * len(raw.entries)
    shapes: list[tuple[int, ...] | None] = [None] * len(raw.entries)
    for position, row in zip(with_state, layout.parameters):
        names[position], keys[position], shapes[position] = row.name, row.key, row.shape
    why = refute_positions(raw, names, keys, shapes, question.adapter)
    if why:
        return [], [refused(layout.source, rule, why)]
    return [Claim(source=layout.source, rule=rule, names=tuple(names), keys=tuple(keys))], []  # type: ignore[arg-type]


def placements(rules: Sequence[Rule], layout: ParameterList, question: Question) -> tuple[dict[Placed, list[Rule]], dict[str, list[Rule]]]:
    """Return every order that some rule gives and nothing refutes, with its rules, and the reasons against the others."""
    fits: dict[Placed, list[Rule]] = {}
    fails: dict[str, list[Rule]] = {}
    present = frozenset[str]().union(*{parameter.classes for parameter in layout.parameters})
    known: dict[tuple[object, ...], list[Placed | str]] = {}
    for rule in rules:
        alike = cuts_alike(rule, present)
        if alike not in known:
            known[alike] = list(_lay_out(layout, rule, question))
        placed = [outcome for outcome in known[alike] if not isinstance(outcome, str)]
        for outcome in placed:
            if rule not in fits.setdefault(outcome, []):
                fits[outcome].append(rule)
        if not placed:
            reason = next((outcome for outcome in known[alike] if isinstance(outcome, str)), "it makes no groups of these sizes")
            fails.setdefault(reason, []).append(rule)
    return fits, fails


def _lay_out(layout: ParameterList, rule: Rule, question: Question) -> Iterator[Placed | str]:
    """Yield every way the rule may place the layout's parameters, or why one cannot be."""
    raw = question.raw
    sizes = [len(group.positions) for group in raw.groups]
    if rule.groups is not None and rule.groups != len(sizes):
        yield refute_groups(raw, [0] * rule.groups) or ""
        return
    for cuts in rule.split(layout.parameters, sizes):
        no_decay = [index for index, cut in enumerate(cuts) if not cut.decays]
        why = refute_groups(raw, [len(cut.parameters) for cut in cuts], no_decay, same_rates(cuts))
        yield why or _place(raw, [parameter for cut in cuts for parameter in cut.parameters], question)


def _place(raw: RawState, parameters: Sequence[Parameter], question: Question) -> Placed | str:
    placed = dict(zip(positions_of(raw), parameters))
    rows = [placed[entry.position] for entry in raw.entries]
    frozen = next((entry.position for entry, row in zip(raw.entries, rows) if entry.has_state and not row.trainable), None)
    if frozen is not None:
        return f"position {frozen} has state, {rows[frozen].name} is frozen"
    names: Names = tuple(row.name for row in rows)
    keys: Names = tuple(row.key if row.trainable else None for row in rows)
    why = refute_positions(raw, names, keys, [row.shape for row in rows], question.adapter)
    return why or (tuple(names), tuple(keys))


def _as_claims(
    layout: ParameterList, question: Question, fits: dict[Placed, list[Rule]], fails: dict[str, list[Rule]], *, guess: bool = False
) -> tuple[list[Claim], list[Refused]]:
    version, by_trainer = stamp(question)
    claims = [
        Claim(
            source="convention" if guess else layout.source,  # type: ignore[arg-type]
            rule=f"{layout.rule}, {said(rules)}",
            names=names,
            keys=keys,
            version_matched=any(version_matched(rule, version, by_trainer=by_trainer) for rule in rules),
            by_hand=guess,
        )
        for (names, keys), rules in fits.items()
    ]
    return claims, _as_lost(layout, fails)


def _as_lost(layout: ParameterList, fails: dict[str, list[Rule]]) -> list[Refused]:
    return [refused(layout.source, said(rules), reason) for reason, rules in fails.items()]


def said(rules: Sequence[Rule]) -> str:
    """Return the rules as people say them: neighbouring releases of one family as one."""
    parts: list[str] = []
    families: dict[str, list[Rule]] = {}
    for rule in rules:
        families.setdefault(rule.family or rule.name, []).append(rule)
    for family, members in families.items():
        spans = [member.span for member in members if member.span is not None]
        parts.append(members[0].name if len(members) == 1 else f"{family} (transformers {_joined(spans)})" if spans else family)
    return "; ".join(parts)


def _joined(spans: Sequence[Span]) -> str:
    merged: list[Span] = []
    for span in spans:
        if merged and merged[-1].before == span.since:
            merged[-1] = Span(merged[-1].since, span.before)
        else:
            merged.append(span)
    return ", ".join(span.text for span in merged)


def stamp(question: Question) -> tuple[Version | None, bool]:
    """Return the release of transformers that the checkpoint itself names, and whether Trainer wrote it.

    Beside an adapter only its model card counts: a config.json there is the base model's, stamped by whoever saved that.
    """
    raw, adapter = question.raw, question.adapter
    whole = adapter is None or adapter.kind == "model"
    found = raw.facts.get("transformers_version") if whole else None
    if adapter is not None:
        found = adapter.facts.get("transformers_version", found)
    folder = raw.facts.get("folder")
    by_trainer = "global_step" in raw.facts or (isinstance(folder, str) and os.path.isfile(os.path.join(folder, "trainer_state.json")))
    return release(found), by_trainer
