"""Claims and evidence made by hand, and what stands where the numbers are asked."""

from __future__ import annotations

from ostate.core.naming import Claim, Evidence, Ordering, Question
from ostate.core.state import Entry, Group, RawState
from ostate.core.tensors import TensorRef
from ostate.ordering.family import Alternative, Family
from ostate.ordering.resolve import resolve as resolve_claims

SLOT = TensorRef(dtype="F32", shape=(2,), parts=())


def state(n: int = 3, without: tuple[int, ...] = ()) -> RawState:
    entries = tuple(Entry(position=i, key=i, group=0, slots={} if i in without else {"exp_avg_sq": SLOT}, shape=(2,)) for i in range(n))
    return RawState(source="optimizer.pt", layout="torch", files=(), groups=(Group(index=0, positions=tuple(range(n))),), entries=entries)


def claim(text: str, source: str = "skeleton", rule: str = "", version_matched: bool = False) -> Claim:
    names = tuple(None if name == "-" else name for name in text)
    return Claim(source=source, rule=rule or f"{source} {text}", names=names, keys=names, version_matched=version_matched)


def proves(positions=(), n: int = 3, verdict: str = "verified", **more) -> Evidence:
    proven = frozenset(positions)
    return Evidence(verdict=verdict, proven=proven, undecided=tuple(i for i in range(n) if i not in proven), margin=9.0, **more)


SILENT = proves((), verdict="silent", silent={"displacement": "B was not zero at the start"})


class Answers:
    """Stands where the numbers are asked: evidence by the names of a claim, made by hand."""

    untested: str | None = None

    def __init__(self, by_names: dict[str, Evidence], recovered: Evidence = SILENT, raw: RawState | None = None, better: Alternative | None = None):
        self.by_names, self.recovered, self.raw, self.found = by_names, recovered, raw or state(), better

    def test(self, claim: Claim, family: Family, *, tries: int = 1) -> Evidence:
        return self.by_names.get("".join(name or "-" for name in claim.names), SILENT)

    def search(self, claim: Claim) -> Evidence:
        return self.test(claim, Family((), ()))

    def better(self, claim: Claim, family: Family) -> Alternative | None:
        return self.found

    def recover(self) -> Evidence:
        return self.recovered


def resolve(answers: Answers, claims: list[Claim], rejected: list[dict[str, str]] | None = None, *, strict: bool = False) -> Ordering:
    return resolve_claims(Question(raw=answers.raw), claims, rejected or [], answers, strict=strict)
