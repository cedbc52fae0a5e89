"""From claims and numbers to one order, or a refusal: the table of verdicts, in one place.

| claims standing | the numbers | what happens |
|---|---|---|
| any | verify one, nothing undecided | `verified` |
| none, several, or an inferred one that the numbers contradict | recover a full order | `recovered` |
| those standing agree on what the numbers leave undecided | prove the rest | `partial`, those names listed |
| those standing differ there, or none stands | prove the rest | `partial`, only what is proven; the rest is left out |
| recorded, given, or one skeleton | silent | `unverified` |
| a convention alone, or several that differ | silent | refused: `Ambiguous` |
| recorded or given | contradict | refused: `Contradiction` |
| any | fit no order at all | refused: `Contradiction` |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ostate.core.names import twins
from ostate.core.naming import Claim, Evidence, Ordering
from ostate.core.state import Finding, RawState
from ostate.errors import Ambiguous, Contradiction

Verify = Callable[[Claim], Evidence]
Recover = Callable[[], Evidence]
LiveName = Callable[[str], str | None]
Rejected = list[Mapping[str, str]]

_SETTLE = (
    "pass --order FILE (one name per line, in the optimizer's order), --base DIR with the base model's config.json,"
    " or --previous DIR with an earlier adapter of the run"
)
_OTHER_RUN = "give the adapter that was saved with this state: same run, same step"


@dataclass(frozen=True, slots=True)
class _Heard:
    """A claim and what the numbers say of it."""

    claim: Claim
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Court:
    """What `resolve` may ask for."""

    raw: RawState
    verify: Verify
    recover: Recover
    live_name: LiveName
    """Adapter key -> live name, for orders that only the numbers tell."""
    guesses: Callable[[], Sequence[Claim]] = tuple
    """Orders that programs make by hand, for when no other claim stands; believed only where the numbers prove them whole."""
    strict: bool = False
    where: str = ""


def resolve(court: Court, claims: Sequence[Claim], rejected: Sequence[Mapping[str, str]] = ()) -> Ordering:
    """Return the order that stands, or refuse.

    Raises:
        Contradiction: the numbers speak against recorded or given names, or fit no order at all.
        Ambiguous: nothing decides between several orders; two positions end under one name.
    """
    lost: Rejected = list(rejected)
    told = [claim for claim in claims if claim.source in ("recorded", "given")]
    if told:
        return _told(court, told, lost)
    heard = [_Heard(claim, court.verify(claim)) for claim in _distinct(claims, court.raw)]
    for each in heard:
        _refuse_foreign(court, each.evidence)
    heard = [_Heard(each.claim, with_partners(each.claim, each.evidence)) for each in heard]
    standing = []
    for each in heard:
        if each.evidence.verdict == "contradicted":
            lost.append(_loser(each.claim, _against(each.evidence)))
        else:
            standing.append(each)
    whole = [each for each in standing if _fully_proven(each.evidence)]
    if len(whole) == 1:
        lost += [_loser(each.claim, "the numbers prove another order") for each in standing if each is not whole[0]]
        return _ordering(court, whole[0].claim, whole[0].evidence, "verified", lost)
    if not standing:
        return _by_content(court, lost)
    return _by_agreement(court, standing, lost)


_FACTOR = re.compile(r"\.lora_(?:embedding_)?[AB](?:\.|$)")


def with_partners(claim: Claim, evidence: Evidence) -> Evidence:
    """Let an inferred claim's lora_A go with its lora_B: one module registers both, so a rule that places one places the other.

    Only where the numbers carry it: the module's other factor is proven, and its own numbers do not speak against it. Never for recorded
    or given names, which may be wrong one by one.
    """
    if claim.source in ("recorded", "given", "content") or evidence.verdict != "verified":
        return evidence
    tied = {position for position in evidence.undecided if position in evidence.carried and _FACTOR.search(claim.keys[position] or "")}
    if not tied:
        return evidence
    said = Finding(
        rule="order-by-partner",
        severity="note",
        text=f"{len(tied)} positions go with the other factor of their module, which the numbers prove; by themselves they are not decided yet",
    )
    return replace(
        evidence,
        proven=evidence.proven | tied,
        undecided=tuple(position for position in evidence.undecided if position not in tied),
        findings=(*evidence.findings, said),
    )


def _told(court: Court, told: Sequence[Claim], lost: Rejected) -> Ordering:
    """Recorded and given names outrank every inference; the numbers can refuse them, not change them."""
    first = told[0]
    for other in told[1:]:
        position = _first_difference(first, other, court.raw)
        if position is not None:
            raise Ambiguous(
                f"{first.rule} says {first.names[position]!r}, {other.rule} says {other.names[position]!r}",
                where=f"{court.where}: position {position}",
                fix="give one of the two, or correct the one that is wrong",
            )
    evidence = court.verify(first)
    _refuse_foreign(court, evidence)
    if evidence.verdict == "contradicted":
        raise Contradiction(
            f"the numbers contradict the names that {first.rule} gives: {_pairs(first, evidence)}",
            where=court.where,
            fix=f"the names are wrong, or {_OTHER_RUN}",
        )
    if evidence.verdict == "silent" or not evidence.proven:
        return _ordering(court, first, evidence, "unverified", lost)
    verdict = "verified" if _fully_proven(evidence) else "partial"
    return _ordering(court, first, evidence, verdict, lost)


def _by_content(court: Court, lost: Rejected) -> Ordering:
    """No claim stands: take what the numbers prove, and nothing else."""
    evidence = court.recover()
    _refuse_foreign(court, evidence)
    with_state = {entry.position for entry in court.raw.entries if entry.has_state}
    if not evidence.proven:
        raise Ambiguous(
            "no source of names stands and the numbers decide nothing" + "".join(f"; {why}" for why in _reasons(evidence, lost)),
            where=court.where,
            fix=_SETTLE,
        )
    keys = tuple(key if position in evidence.proven else None for position, key in enumerate(evidence.order))
    names = tuple(court.live_name(key) if key is not None else None for key in keys)
    keys = tuple(key if name is not None else None for key, name in zip(keys, names))
    claim = Claim(source="content", rule="the numbers alone", names=names, keys=keys)
    left_out = tuple(sorted(position for position in with_state if names[position] is None))
    if left_out and (guessed := _by_guess(court)) is not None:
        return _ordering(court, guessed.claim, guessed.evidence, "verified", lost)
    if left_out:
        _refuse_if_strict(court, left_out)
    return _ordering(court, claim, evidence, "partial" if left_out else "recovered", lost, left_out=left_out)


def _by_guess(court: Court) -> _Heard | None:
    """An order that programs make by hand, if the numbers prove exactly one of those whole."""
    heard = [_Heard(claim, with_partners(claim, court.verify(claim))) for claim in _distinct(court.guesses(), court.raw)]
    whole = [each for each in heard if _fully_proven(each.evidence)]
    return whole[0] if len(whole) == 1 else None


def _by_agreement(court: Court, standing: list[_Heard], lost: Rejected) -> Ordering:
    """Some claims stand and none is proven whole: keep what is proven and what all of them say alike."""
    preferred = [each for each in standing if each.claim.preferred]
    if preferred and len(preferred) < len(standing):
        lost += [_loser(each.claim, "a version stamp asks for another rule") for each in standing if not each.claim.preferred]
        standing = preferred
    best = max(standing, key=lambda each: len(each.evidence.proven))
    claim, evidence = best.claim, best.evidence
    only_convention = all(each.claim.source == "convention" for each in standing)
    if evidence.verdict == "silent" or not evidence.proven:
        return _silent(court, standing, only_convention, lost)
    keep = set(evidence.proven)
    for position in evidence.undecided:
        said = {each.claim.names[position] for each in standing if position not in each.evidence.proven}
        if len(said) == 1 and not only_convention:
            keep.add(position)
    keep |= {
        entry.position for entry in court.raw.entries if not entry.has_state and len({each.claim.names[entry.position] for each in standing}) == 1
    }
    names = tuple(name if position in keep else None for position, name in enumerate(claim.names))
    left_out = tuple(entry.position for entry in court.raw.entries if entry.has_state and names[entry.position] is None)
    if left_out:
        _refuse_if_strict(court, left_out)
    lost += [_loser(each.claim, "differs where the numbers leave it undecided") for each in standing if each is not best]
    kept = Claim(source=claim.source, rule=claim.rule, names=names, keys=tuple(k if n is not None else None for k, n in zip(claim.keys, names)))
    return _ordering(court, kept, evidence, "partial", lost, left_out=left_out)


def _silent(court: Court, standing: list[_Heard], only_convention: bool, lost: Rejected) -> Ordering:
    first = standing[0]
    if len(standing) == 1 and not only_convention:
        return _ordering(court, first.claim, first.evidence, "unverified", lost)
    if len(standing) == 1:
        raise Ambiguous(
            f"only a convention names these positions ({first.claim.rule}) and the numbers say nothing of it"
            + "".join(f"; {why}" for why in _reasons(first.evidence, lost)),
            where=court.where,
            fix=_SETTLE,
        )
    second = standing[1]
    position = _first_difference(first.claim, second.claim, court.raw) or 0
    raise Ambiguous(
        f"{first.claim.rule} says {first.claim.names[position]!r}, {second.claim.rule} says {second.claim.names[position]!r},"
        f" and the numbers say nothing{''.join(f'; {why}' for why in _reasons(first.evidence, []))}",
        where=f"{court.where}: position {position}",
        fix=_SETTLE,
    )


def _ordering(court: Court, claim: Claim, evidence: Evidence, verdict: str, lost: Rejected, *, left_out: tuple[int, ...] = ()) -> Ordering:
    for twice in twins(claim.names):
        at = [position for position, name in enumerate(claim.names) if name == twice]
        raise Ambiguous(
            f"positions {at[0]} and {at[1]} are both called {twice!r} ({claim.rule})",
            where=f"{court.where}: {claim.keys[at[0]]!r} and {claim.keys[at[1]]!r}",
            fix="give --order FILE with a name of its own for each position",
        )
    undecided = tuple(
        name
        for position in range(len(claim.names))
        if position not in evidence.proven and court.raw.entries[position].has_state and (name := claim.names[position]) is not None
    )
    return Ordering(
        names=claim.names,
        keys=claim.keys,
        source=claim.source,
        rule=claim.rule,
        verdict=verdict,  # type: ignore[arg-type]
        margin=evidence.margin,
        undecided=undecided if verdict in ("partial", "unverified") else (),
        rejected=tuple(lost),
        left_out=left_out,
        from_keys=claim.from_keys,
        findings=evidence.findings,
        evidence=evidence,
    )


def _distinct(claims: Sequence[Claim], raw: RawState) -> list[Claim]:
    """Claims that say the same of every position with state are one; the preferred of them speaks.

    Of a position without state, which no number can decide, it keeps the name only where all of them (all preferred ones, where some are) agree.
    """
    with_state = [entry.position for entry in raw.entries if entry.has_state] or [entry.position for entry in raw.entries]
    alike: dict[tuple[tuple[str | None, str | None], ...], list[Claim]] = {}
    for claim in claims:
        said = tuple((claim.names[position], claim.keys[position]) for position in with_state)
        alike.setdefault(said, []).append(claim)
    return [_agreed(rows) for rows in alike.values()]


def _agreed(claims: Sequence[Claim]) -> Claim:
    """Return the one of these claims that speaks, without the names that the others contradict."""
    speaking = [claim for claim in claims if claim.preferred] or list(claims)
    if len(speaking) == 1:
        return speaking[0]
    said = [{pair for pair in pairs if pair[0] is not None} for pairs in zip(*(zip(claim.names, claim.keys) for claim in speaking))]
    agreed = [next(iter(pairs)) if len(pairs) == 1 else (None, None) for pairs in said]
    return replace(speaking[0], names=tuple(name for name, _ in agreed), keys=tuple(key for _, key in agreed))


def _fully_proven(evidence: Evidence) -> bool:
    return evidence.verdict == "verified" and bool(evidence.proven) and not evidence.undecided


def _refuse_foreign(court: Court, evidence: Evidence) -> None:
    if evidence.foreign:
        raise Contradiction(
            "the numbers fit no order of this adapter at all: another run's adapter?",
            where=court.where,
            fix=_OTHER_RUN,
        )


def _refuse_if_strict(court: Court, left_out: tuple[int, ...]) -> None:
    if court.strict:
        raise Ambiguous(
            f"{len(left_out)} positions cannot be named for certain: {_some(left_out)}",
            where=court.where,
            fix=f"{_SETTLE}; or leave --strict away to write what is proven",
        )


def _first_difference(one: Claim, other: Claim, raw: RawState) -> int | None:
    for entry in raw.entries:
        names = one.names[entry.position], other.names[entry.position]
        if names[0] != names[1] and (entry.has_state or None not in names):
            return entry.position
    return None


def _loser(claim: Claim, reason: str) -> Mapping[str, str]:
    return {"source": claim.source, "rule": claim.rule, "reason": reason}


def _against(evidence: Evidence) -> str:
    if not evidence.contradictions:
        return "the numbers contradict it"
    position, claimed, better = evidence.contradictions[0]
    return f"the numbers contradict it: position {position} is {better}, not {claimed} ({len(evidence.contradictions)} in all)"


def _pairs(claim: Claim, evidence: Evidence) -> str:
    said = [f"position {position} is {claimed} by name and {better} by its numbers" for position, claimed, better in evidence.contradictions[:3]]
    more = len(evidence.contradictions) - len(said)
    return "; ".join(said) + (f"; and {more} more" if more > 0 else "") if said else f"{claim.rule} fits worse than another order"


def _reasons(evidence: Evidence, lost: Sequence[Mapping[str, str]]) -> list[str]:
    return [f"{test}: {why}" for test, why in evidence.silent.items()][:3] + [f"{loser['rule']}: {loser['reason']}" for loser in lost][:3]


def _some(positions: Sequence[int]) -> str:
    text = ", ".join(map(str, positions[:8]))
    return text + (", …" if len(positions) > 8 else "")
