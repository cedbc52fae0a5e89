"""Why no order stands, in words: what the numbers contradict, what is left open, what would decide it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ostate.core.naming import ALL_TESTS, Claim, Evidence, Question, first_rule
from ostate.core.state import RawState
from ostate.errors import Ambiguous, Contradiction

from .advice import BASE, ORDER, PREVIOUS, SAME_SAVE, given, ways


def refuse_contradicted(evidence: Evidence, claim: Claim, raw: RawState) -> None:
    """Raise Contradiction where the tensor values contradict the names of a claim, or fit no order at all."""
    refuse_other_run(evidence, raw)
    if evidence.verdict == "contradicted":
        raise Contradiction(
            f"the tensor values contradict the names of {first_rule(claim.rule)}",
            where=raw.source,
            why=_pairs(claim, evidence),
            fix=f"the names are wrong, or {SAME_SAVE}",
        )


def refuse_other_run(evidence: Evidence, raw: RawState) -> None:
    """Raise Contradiction where the tensor values fit no order of this adapter."""
    if evidence.other_run:
        raise Contradiction(
            "the tensor values fit no order of this adapter: it is of another run, or of another step or an average of this one",
            where=raw.source,
            fix=SAME_SAVE,
        )


def refuse_if_strict(question: Question, left_out: tuple[int, ...], *, strict: bool) -> None:
    """Raise Ambiguous where positions would be left out and `--strict` forbids it."""
    if strict:
        raise Ambiguous(
            f"{len(left_out)} positions have no proven name: {_some(left_out)}",
            where=question.raw.source,
            fix=f"{what_decides(question)}; or drop --strict to write what is proven",
        )


def what_decides(question: Question) -> str:
    """Return the options that could decide the order and were not given."""
    return ways(given(question), ORDER, BASE, PREVIOUS)


def first_difference(one: Claim, other: Claim, raw: RawState) -> int | None:
    """Return the first position that two claims name differently: with state, or named by both."""
    for entry in raw.entries:
        names = one.names[entry.position], other.names[entry.position]
        if names[0] != names[1] and (entry.has_state or None not in names):
            return entry.position
    return None


def loser(claim: Claim, reason: str) -> Mapping[str, str]:
    """Return a rejected claim as the manifest records it."""
    return {"source": claim.source, "rule": claim.rule, "reason": reason}


def contradiction_of(claim: Claim, evidence: Evidence) -> str:
    """Return the first position that the tensor values name otherwise than the claim, and how many there are."""
    if not evidence.contradictions:
        return "the tensor values contradict it"
    live = _live_names(claim)
    position, claimed, better = evidence.contradictions[0]
    wrong = f"position {position} is {live.get(better, better)}, not {live.get(claimed, claimed)}"
    return f"the tensor values contradict it: {wrong} ({len(evidence.contradictions)} in all)"


def _live_names(claim: Claim) -> dict[str, str]:
    """Return the claim's live name of each adapter key, so that a person reads one form of names."""
    return {key: name for key, name in zip(claim.keys, claim.names) if key is not None and name is not None}


def _pairs(claim: Claim, evidence: Evidence) -> list[str]:
    live = _live_names(claim)
    said = [
        f"position {position} is {live.get(claimed, claimed)} by name, {live.get(better, better)} by its values"
        for position, claimed, better in evidence.contradictions
    ]
    return said or [f"{claim.rule} fits worse than another order"]


def reasons(evidence: Evidence, lost: Sequence[Mapping[str, str]]) -> list[str]:
    """Return why nothing decides, the most telling first: why the values were not compared, what ruled the other orders out, what stays possible."""
    untested = [why if test == ALL_TESTS else f"{test}: {why}" for test, why in evidence.silent.items()]
    rejected = [f"{first_rule(loser['rule'])}: {loser['reason']}" for loser in lost]
    return [*untested, *rejected, *(f"not excluded: {what}" for what, _ in evidence.open)]


def _some(positions: Sequence[int]) -> str:
    text = ", ".join(map(str, positions[:8]))
    return text + (", …" if len(positions) > 8 else "")
