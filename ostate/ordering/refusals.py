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
        raise contradicted(claim, raw, _pairs(claim, evidence))


def contradicted(claim: Claim, raw: RawState, why: Sequence[str]) -> Contradiction:
    """Return the refusal of names that the tensor values contradict: whose names, and what to do with names from there."""
    if claim.source == "given":
        whose, mend = "of --order", "correct the names, or drop --order"
    elif raw.recorded == "named":
        whose, mend = "in this file", "repair the training's own checkpoint again"
    elif raw.recorded is None:
        whose, mend = f"in {claim.rule}", "correct that file, or move it away"
    else:
        whose, mend = f"recorded in this state ({first_rule(claim.rule)})", "use another checkpoint"
    return Contradiction(f"the tensor values contradict the names {whose}", where=raw.source, why=why, fix=f"{mend}; or {SAME_SAVE}")


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
    position, claimed, better = evidence.contradictions[0]
    claimed, better = _apart(claim, claimed, better)
    wrong = f"position {position} is {better}, not {claimed}"
    return f"the tensor values contradict it: {wrong} ({len(evidence.contradictions)} in all)"


def _apart(claim: Claim, *keys: str) -> list[str]:
    """Return the claim's live names of two adapter keys, so that a person reads one form of names; of a beginning that both share, one segment."""
    live = {key: name for key, name in zip(claim.keys, claim.names) if key is not None and name is not None}
    names = [live.get(key, key).split(".") for key in keys]
    parted = next((at for at, pair in enumerate(zip(*names)) if len(set(pair)) > 1), 0)
    start = max(parted - 1, 0)
    return [("…" if start else "") + ".".join(name[start:]) for name in names]


def _pairs(claim: Claim, evidence: Evidence) -> list[str]:
    said = []
    for position, *keys in evidence.contradictions:
        claimed, better = _apart(claim, *keys)
        said.append(f"position {position} is {claimed} by name, {better} by its values")
    return said or ["another order fits better"]


def reasons(evidence: Evidence, lost: Sequence[Mapping[str, str]]) -> list[str]:
    """Return why nothing decides, the most telling first: why the values were not compared, what ruled the other orders out, what stays possible."""
    untested = [why if test == ALL_TESTS else f"{test}: {why}" for test, why in evidence.silent.items()]
    rejected = [f"{first_rule(loser['rule'])}: {loser['reason']}" for loser in lost]
    return [*untested, *rejected, *(f"not excluded: {what}" for what, _ in evidence.open)]


def _some(positions: Sequence[int]) -> str:
    text = ", ".join(map(str, positions[:8]))
    return text + (", …" if len(positions) > 8 else "")
