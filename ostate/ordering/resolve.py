"""From claims and numbers to one order, or a refusal: the table of verdicts, in one place.

| claims standing | the numbers | what happens |
|---|---|---|
| any | leave this one of all orders of the family | `verified` |
| none, or inferred ones that the numbers contradict | give a full order, each position by itself | `recovered` |
| a convention, or names that repair inferred | give the same order without it, each position by itself | `recovered` |
| those standing agree on what the numbers leave open | prove the rest | `partial`, those names listed |
| those standing differ there, or only a convention stands | prove the rest | `partial`, only what is proven; the rest is left out |
| recorded, given, or one rebuilt model | silent | `unverified` |
| a convention alone, or several that differ | silent | refused: `Ambiguous` |
| recorded or given | contradict | refused: `Contradiction` |
| any | fit no order at all | refused: `Contradiction` |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ostate.core.names import twins
from ostate.core.naming import Claim, Evidence, Ordering, Question, first_rule
from ostate.core.state import Finding, RawState
from ostate.errors import Ambiguous

from .assumed import assume
from .family import Alternative, Family, family_of
from .keys import known_live_name
from .refusals import (
    contradicted,
    contradiction_of,
    first_difference,
    loser,
    reasons,
    refuse_contradicted,
    refuse_if_strict,
    refuse_other_run,
    what_decides,
)
from .sources.rebuilt.model import layouts_of
from .sources.rebuilt.older_names import saved_apart

Rejected = list[Mapping[str, str]]

MOST_TRIED = 48
"""Other orders of a family that are tried as claims of their own where none stands."""


class EvidenceSource(Protocol):
    """The questions that naming asks of the numbers; `evidence.comparison.Comparison` and `evidence.untested.Untested` answer them."""

    untested: str | None
    """Why no number is read; None: they are."""

    def test(self, claim: Claim, family: Family, *, tries: int = 1) -> Evidence:
        """Return what the numbers say of a claim, one of so many tried, against its family."""
        ...

    def better(self, claim: Claim, family: Family) -> Alternative | None:
        """Return another order of the family that the numbers prove against the claim."""
        ...

    def search(self, claim: Claim) -> Evidence:
        """Return what the fitted search says: it may contradict."""
        ...

    def recover(self) -> Evidence:
        """Return the order that the numbers alone give."""
        ...


@dataclass(frozen=True, slots=True)
class Tested:
    """A claim, the orders that could have been made in its place, and what the numbers say of it."""

    claim: Claim
    family: Family
    evidence: Evidence

    @property
    def whole(self) -> bool:
        """True when every position with state is proven and no module stands apart."""
        return self.evidence.verdict == "verified" and bool(self.evidence.proven) and not self.evidence.undecided


def resolve(
    question: Question, claims: Sequence[Claim], rejected: Sequence[Mapping[str, str]], comparison: EvidenceSource, *, strict: bool = False
) -> Ordering:
    """Return the order that stands, or refuse.

    Args:
        question: the state and the weights.
        claims: that shapes and groups do not refute.
        rejected: the losers so far, with their reasons.
        comparison: the numbers.
        strict: refuse where a position would be left out.

    Raises:
        Contradiction: the numbers contradict recorded or given names, or fit no order at all.
        Ambiguous: nothing decides between several orders; two positions end under one name.
    """
    lost: Rejected = list(rejected)
    explicit = [claim for claim in claims if claim.explicit]
    if explicit:
        return _explicit(question, explicit, comparison, lost)
    distinct = _distinct(claims, question.raw)
    tested = []
    for claim in sorted(distinct, key=lambda claim: not claim.version_matched):
        others = [other for other in distinct if other is not claim]
        family = _family(claim, others, question, comparison)
        each = Tested(claim, family, comparison.test(claim, family, tries=len(distinct)))
        if each.whole:
            lost += [loser(other, "the tensor values prove another order") for other in others]
            return _ordering(question.raw, claim, each.evidence, "verified", lost)
        tested.append(each)
    for each in tested:  # another order that a program makes, and that is proven whole
        found = _proven_alternative(each, question, comparison)
        if found is not None:
            lost += [loser(claim, "the tensor values prove another order") for claim in distinct]
            return _ordering(question.raw, found.claim, found.evidence, "verified", lost)
    standing = _standing(tested, question.raw, comparison, lost)
    if not standing:
        return _by_numbers(question, comparison, lost, strict=strict)
    return _by_agreement(question, standing, comparison, lost, strict=strict)


def _explicit(question: Question, explicit: Sequence[Claim], comparison: EvidenceSource, lost: Rejected) -> Ordering:
    """Recorded and given names outrank every inference; the numbers can refuse them, not change them."""
    raw, first = question.raw, explicit[0]
    for other in explicit[1:]:
        position = first_difference(first, other, raw)
        if position is not None:
            raise Ambiguous(
                f"{first.rule} and {other.rule} name a position differently",
                where=f"{raw.source}: position {position}",
                why=(f"{first.rule}: {first.names[position]}", f"{other.rule}: {other.names[position]}"),
                fix="drop --order, or correct the names that are wrong" if other.source == "given" else "correct the names that are wrong",
            )
    family = _family(first, (), question, comparison)
    each = Tested(first, family, comparison.test(first, family))
    if each.whole:
        return _ordering(raw, first, each.evidence, "verified", lost)
    refuse_contradicted(each.evidence, first, raw)
    better = comparison.better(first, family)
    if better is not None:
        raise contradicted(first, raw, (f"they prove another order: {better.what}",))
    if not each.evidence.proven or each.evidence.apart:
        refuse_contradicted(comparison.search(first), first, raw)
    evidence, verdict = each.evidence, "partial"
    if raw.facts.get("searched"):  # what repair named with the help of its search, that finds again
        evidence, verdict = _with_search(evidence, first, comparison.recover(), raw)
    return _ordering(raw, first, evidence, verdict if evidence.proven else "unverified", lost)


def _family(claim: Claim, others: Sequence[Claim], question: Question, comparison: EvidenceSource) -> Family:
    """Return the orders that a program could have made in place of a claim's; none where no number will be asked which of them it was."""
    return family_of(claim, others, question) if comparison.untested is None else Family((), ())


def _proven_alternative(tested: Tested, question: Question, comparison: EvidenceSource) -> Tested | None:
    """Return the first order of the family that the numbers prove whole as a claim of its own."""
    evidence = tested.evidence
    if evidence.weakest_alternative is None:
        return None  # no number was asked
    left = {what for what, _ in evidence.open}  # of a claim that stands in part; where it does not at all, any of them
    others = [other for other in tested.family.alternatives if not other.fault and (not evidence.proven or other.what in left)]
    others = others[:MOST_TRIED]
    for other in others:
        claim = Claim(
            source="convention", rule=other.what, names=other.names, keys=other.keys, from_keys=tested.claim.from_keys, by_hand=tested.claim.by_hand
        )
        family = _family(claim, (tested.claim,), question, comparison)
        each = Tested(claim, family, comparison.test(claim, family, tries=len(others)))
        if each.whole:
            return each
    return None


def _standing(tested: Sequence[Tested], raw: RawState, comparison: EvidenceSource, lost: Rejected) -> list[Tested]:
    """Return the claims that the fitted search does not contradict; it is asked only of those that nothing is proven of."""
    standing = []
    for each in tested:
        found = each.evidence if each.evidence.proven else comparison.search(each.claim)
        refuse_other_run(found, raw)
        if found.verdict == "contradicted":
            lost.append(loser(each.claim, contradiction_of(each.claim, found)))
        else:
            standing.append(each)
    return standing


def _by_numbers(question: Question, comparison: EvidenceSource, lost: Rejected, *, strict: bool) -> Ordering:
    """No claim stands: take what the numbers prove by themselves, and nothing else."""
    raw = question.raw
    evidence = comparison.recover()
    refuse_other_run(evidence, raw)
    if not evidence.proven:
        raise Ambiguous(
            "cannot determine the parameter order",
            where=raw.source,
            why=reasons(evidence, lost),
            fix=what_decides(question),
        )
    keys = tuple(key if position in evidence.proven else None for position, key in enumerate(evidence.order))
    names_of, unsure = _names_of_keys(question)
    names = tuple(names_of(key) if key is not None else None for key in keys)
    keys = tuple(key if name is not None else None for key, name in zip(keys, names))
    claim = Claim(source="content", rule="tensor values alone", names=names, keys=keys)
    left_out = tuple(entry.position for entry in raw.entries if entry.has_state and names[entry.position] is None)
    if left_out:
        refuse_if_strict(question, left_out, strict=strict)
    return assume(_ordering(raw, claim, evidence, "partial" if left_out else "recovered", lost, left_out=left_out), unsure, unsure)


def _names_of_keys(question: Question) -> tuple[Callable[[str], str | None], tuple[str, ...]]:
    """Return what gives a key's live name, and what is assumed of all of them."""
    adapter = question.adapter
    if adapter is None:
        return (lambda key: key), ()
    if not saved_apart(adapter):
        return (lambda key: known_live_name(key, adapter)), ()
    layouts = layouts_of(question)
    if isinstance(layouts, str):
        return (lambda key: key), (f"names are the keys under which transformers 5 saved the model, some of an older release ({layouts})",)
    return {row.key: row.name for row in layouts[0].parameters if row.key is not None}.get, ()


def _by_agreement(question: Question, standing: list[Tested], comparison: EvidenceSource, lost: Rejected, *, strict: bool) -> Ordering:
    """Some claims stand and none is proven whole: keep what is proven and what all of them say alike."""
    raw = question.raw
    version_matched = [each for each in standing if each.claim.version_matched]
    if version_matched and len(version_matched) < len(standing):
        lost += [loser(each.claim, "the recorded library version uses another rule") for each in standing if not each.claim.version_matched]
        standing = version_matched
    best, found = standing[0], None
    if len(standing) > 1:  # of several releases' orders, that one whose names the numbers alone give too
        found = comparison.recover()
        best = max(standing, key=lambda each: len(_with_search(each.evidence, each.claim, found, raw)[0].proven))
    claim, evidence, verdict = best.claim, best.evidence, "partial"
    only_convention = all(each.claim.source == "convention" for each in standing)
    keep = _said_alike(standing, evidence, trusted=not only_convention)
    if (evidence.proven or only_convention) and any(entry.has_state and entry.position not in keep for entry in raw.entries):
        evidence, verdict = _with_search(evidence, claim, found or comparison.recover(), raw)
        keep |= evidence.proven
    if not evidence.proven:
        return _silent(question, standing, lost, only_convention=only_convention)
    keep |= {entry.position for entry in raw.entries if not entry.has_state and len({each.claim.names[entry.position] for each in standing}) == 1}
    names = tuple(name if position in keep else None for position, name in enumerate(claim.names))
    left_out = tuple(entry.position for entry in raw.entries if entry.has_state and names[entry.position] is None)
    if left_out:
        refuse_if_strict(question, left_out, strict=strict)
    lost += [loser(each.claim, "differs at positions that the tensor values do not decide") for each in standing if each is not best]
    kept = replace(claim, names=names, keys=tuple(k if n is not None else None for k, n in zip(claim.keys, names)))
    return _ordering(raw, kept, evidence, verdict, lost, left_out=left_out)


def _said_alike(standing: Sequence[Tested], evidence: Evidence, *, trusted: bool) -> set[int]:
    """Return the positions that are proven, and those where all that stand say one name; a convention alone is not `trusted` with these."""
    keep = set(evidence.proven)
    for position in evidence.undecided if trusted else ():
        said = {each.claim.names[position] for each in standing if position not in each.evidence.proven}
        if len(said) == 1:
            keep.add(position)
    return keep


def _with_search(evidence: Evidence, claim: Claim, found: Evidence, raw: RawState) -> tuple[Evidence, str]:
    """Return what is proven of a claim together with the positions where the numbers alone, no order known, give the same key; and the verdict.

    Those names would have been written without the claim (`_by_numbers`): it cannot make them worse. What stands apart from its siblings stays out.
    """
    same = frozenset(p for p in found.proven if found.order[p] == claim.keys[p] and p not in evidence.apart)
    proven = evidence.proven | same
    whole = all(entry.position in proven for entry in raw.entries if entry.has_state)
    return replace(evidence, proven=proven, alone=evidence.alone | same), "recovered" if whole else "partial"


def _silent(question: Question, standing: Sequence[Tested], lost: Rejected, *, only_convention: bool) -> Ordering:
    raw, first = question.raw, standing[0]
    if len(standing) == 1 and not only_convention:
        return _ordering(raw, first.claim, first.evidence, "unverified", lost)
    if len(standing) == 1:
        raise Ambiguous(
            "cannot determine the parameter order: only a convention gives one, and the tensor values do not prove it",
            where=raw.source,
            why=(f"the convention: {first_rule(first.claim.rule)}", *reasons(first.evidence, lost)),
            fix=what_decides(question),
        )
    second = standing[1]
    position = first_difference(first.claim, second.claim, raw) or 0
    raise Ambiguous(
        "cannot determine the parameter order: several orders are possible, and the tensor values do not decide",
        where=f"{raw.source}: position {position}",
        why=(
            f"{first_rule(first.claim.rule)}: {first.claim.names[position]}",
            f"{first_rule(second.claim.rule)}: {second.claim.names[position]}",
            *reasons(first.evidence, []),
        ),
        fix=what_decides(question),
    )


def _ordering(raw: RawState, claim: Claim, evidence: Evidence, verdict: str, lost: Rejected, *, left_out: tuple[int, ...] = ()) -> Ordering:
    """Return the order with its verdict. Names that do not stand by themselves are listed, of a proven order as a fact."""
    for twice in twins(claim.names):
        at = [position for position, name in enumerate(claim.names) if name == twice]
        raise Ambiguous(
            f"positions {at[0]} and {at[1]} are both called {twice!r} ({claim.rule})",
            where=f"{raw.source}: {claim.keys[at[0]]!r} and {claim.keys[at[1]]!r}",
            fix="make every name in the file unique" if claim.source == "given" else "pass --order FILE with a name of its own for each position",
        )
    # a file's entries may have been exchanged by hand, whoever gives the names: beyond that is only what stands by its own numbers
    by_itself = evidence.proven if claim.source == "content" else evidence.alone
    undecided = tuple(
        name
        for position in range(len(claim.names))
        if position not in by_itself and raw.entries[position].has_state and (name := claim.names[position]) is not None
    )
    return Ordering(
        names=claim.names,
        keys=claim.keys,
        source=claim.source,
        rule=claim.rule,
        verdict=verdict,  # type: ignore[arg-type]
        proof=("order" if undecided else "each") if verdict in ("verified", "recovered") else None,
        weakest_alternative=evidence.weakest_alternative,
        margin=evidence.margin,
        undecided=undecided,
        rejected=tuple(lost),
        left_out=left_out,
        from_keys=claim.from_keys,
        findings=(*evidence.findings, *_findings(claim, evidence)),
        evidence=evidence,
    )


def _findings(claim: Claim, evidence: Evidence) -> list[Finding]:
    """Say what looking at single modules found."""
    found = []
    if evidence.apart:
        names = tuple(name for position in evidence.apart if (name := claim.names[position] or evidence.order[position]) is not None)
        found.append(
            Finding(
                rule="module-stands-apart",
                severity="warning",
                text=f"the tensor values of {len(names)} names differ from those of similar modules: "
                "exchanged by hand, damaged, trained separately, or reset on the way (ReLoRA)",
                fix="check these against the run; run `ostate verify` with the adapter of the same step",
                names=names,
            )
        )
    if evidence.untrained:
        names = tuple(name for position in evidence.untrained if (name := claim.names[position]) is not None)
        text = f"{len(names)} names have moments that are all zero: they were never trained, so nothing can prove the names"
        found.append(Finding(rule="moments-all-zero", severity="warning" if claim.explicit else "note", text=text, names=names))
    return found


def _distinct(claims: Sequence[Claim], raw: RawState) -> list[Claim]:
    """Return one claim for those that say the same of every position with state: the first that a version asks for, else the first.

    Of a position without state, which no number can decide, it keeps the name only where all agree (of those that a version asks for, if any).
    """
    with_state = [entry.position for entry in raw.entries if entry.has_state] or [entry.position for entry in raw.entries]
    alike: dict[tuple[tuple[str | None, str | None], ...], list[Claim]] = {}
    for claim in claims:
        said = tuple((claim.names[position], claim.keys[position]) for position in with_state)
        alike.setdefault(said, []).append(claim)
    return [_agreed(rows) for rows in alike.values()]


def _agreed(claims: Sequence[Claim]) -> Claim:
    """Return the first of these claims (of those that a version asks for), without the names that the others contradict."""
    chosen = [claim for claim in claims if claim.version_matched] or list(claims)
    if len(chosen) == 1:
        return chosen[0]
    said = [{pair for pair in pairs if pair[0] is not None} for pairs in zip(*(zip(claim.names, claim.keys) for claim in chosen))]
    agreed = [next(iter(pairs)) if len(pairs) == 1 else (None, None) for pairs in said]
    return replace(chosen[0], names=tuple(name for name, _ in agreed), keys=tuple(key for _, key in agreed))
