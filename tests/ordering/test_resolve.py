"""The table of verdicts, row by row, with claims and evidence made by hand."""

from __future__ import annotations

import pytest

from ostate.core.naming import Claim, Evidence
from ostate.core.state import Entry, Group, RawState
from ostate.core.tensors import TensorRef
from ostate.errors import Ambiguous, Contradiction
from ostate.ordering.resolve import Court, resolve
from tests.records import replace

SLOT = TensorRef(dtype="F32", shape=(2,), parts=())


def state(n: int = 3, without: tuple[int, ...] = ()) -> RawState:
    entries = tuple(Entry(position=i, key=i, group=0, slots={} if i in without else {"exp_avg_sq": SLOT}, shape=(2,)) for i in range(n))
    return RawState(source="optimizer.pt", layout="torch", files=(), groups=(Group(index=0, positions=tuple(range(n))),), entries=entries)


def claim(text: str, source: str = "skeleton", rule: str = "", preferred: bool = False) -> Claim:
    names = tuple(None if name == "-" else name for name in text)
    return Claim(source=source, rule=rule or f"{source} {text}", names=names, keys=names, preferred=preferred)


def proves(positions, n: int = 3, verdict: str = "verified", **more) -> Evidence:
    proven = frozenset(positions)
    return Evidence(verdict=verdict, proven=proven, undecided=tuple(i for i in range(n) if i not in proven), margin=9.0, **more)


SILENT = proves((), verdict="silent", silent={"displacement": "B was not zero at the start"})
AGAINST = proves((), verdict="contradicted", contradictions=((0, "a", "b"), (1, "b", "a")))
FOREIGN = proves((), verdict="contradicted", foreign=True)


def court(heard: dict[str, Evidence], recovered: Evidence = SILENT, raw: RawState | None = None, strict: bool = False) -> Court:
    return Court(
        raw=raw or state(),
        verify=lambda claim: heard["".join(name or "-" for name in claim.names)],
        recover=lambda: recovered,
        live_name=lambda key: key.upper(),
        strict=strict,
        where="optimizer.pt",
    )


def test_a_claim_that_the_numbers_prove_whole_is_verified():
    found = resolve(court({"abc": proves((0, 1, 2)), "bac": AGAINST}), [claim("bac"), claim("abc")])
    assert (found.verdict, found.names, found.undecided) == ("verified", ("a", "b", "c"), ())
    assert found.rejected[0]["reason"].startswith("the numbers contradict it: position 0 is b, not a")


def test_recorded_names_that_the_numbers_prove_whole_are_verified():
    found = resolve(court({"abc": proves((0, 1, 2))}), [claim("abc", "recorded"), claim("bac")])
    assert (found.verdict, found.source) == ("verified", "recorded")


def test_an_inferred_claim_that_is_contradicted_gives_way_to_the_order_of_the_numbers():
    found = resolve(court({"abc": AGAINST}, recovered=proves((0, 1, 2), order=("b", "a", "c"))), [claim("abc")])
    assert (found.verdict, found.source, found.names) == ("recovered", "content", ("B", "A", "C"))
    assert found.rejected[0]["rule"] == "skeleton abc"


def test_without_a_claim_the_numbers_alone_may_give_the_whole_order():
    found = resolve(court({}, recovered=proves((0, 1, 2), order=("c", "b", "a"))), [])
    assert (found.verdict, found.names) == ("recovered", ("C", "B", "A"))


def test_claims_that_agree_where_the_numbers_are_undecided_carry_those_names():
    found = resolve(court({"abc": proves((0, 1))}), [claim("abc")])
    assert (found.verdict, found.names, found.undecided, found.left_out) == ("partial", ("a", "b", "c"), ("c",), ())


def test_claims_that_differ_where_the_numbers_are_undecided_name_only_what_is_proven():
    heard = {"abcd": proves((0, 1), 4), "abdc": proves((0, 1), 4)}
    found = resolve(court(heard, raw=state(4)), [claim("abcd"), claim("abdc")])
    assert (found.verdict, found.names, found.keys, found.left_out) == ("partial", ("a", "b", None, None), ("a", "b", None, None), (2, 3))


def test_a_convention_alone_carries_nothing_that_is_not_proven():
    found = resolve(court({"abc": proves((0, 1))}), [claim("abc", "convention")])
    assert (found.names, found.left_out) == (("a", "b", None), (2,))


def test_without_a_claim_only_what_is_proven_is_named():
    found = resolve(court({}, recovered=proves((0, 2), order=("a", "b", "c"))), [])
    assert (found.verdict, found.names, found.left_out) == ("partial", ("A", None, "C"), (1,))


def test_strict_refuses_to_leave_positions_out():
    with pytest.raises(Ambiguous, match="1 positions cannot be named for certain: 1"):
        resolve(court({}, recovered=proves((0, 2), order=("a", "b", "c")), strict=True), [])


@pytest.mark.parametrize("source", ["recorded", "given", "skeleton"])
def test_one_source_and_silent_numbers_is_unverified(source):
    found = resolve(court({"abc": SILENT}), [claim("abc", source)])
    assert (found.verdict, found.undecided) == ("unverified", ("a", "b", "c"))


def test_a_convention_alone_and_silent_numbers_are_refused():
    with pytest.raises(Ambiguous, match="only a convention names these positions"):
        resolve(court({"abc": SILENT}), [claim("abc", "convention")])


def test_two_claims_that_differ_and_silent_numbers_are_ambiguous_at_the_first_difference():
    with pytest.raises(Ambiguous) as caught:
        resolve(court({"abc": SILENT, "acb": SILENT}), [claim("abc", rule="E3"), claim("acb", rule="E1")])
    assert caught.value.what.startswith("E3 says 'b', E1 says 'c', and the numbers say nothing")
    assert caught.value.where == "optimizer.pt: position 1"


def test_a_version_stamp_chooses_between_claims_when_the_numbers_are_silent():
    found = resolve(court({"abc": SILENT, "acb": SILENT}), [claim("abc"), claim("acb", preferred=True)])
    assert (found.verdict, found.names) == ("unverified", ("a", "c", "b"))


@pytest.mark.parametrize("source", ["recorded", "given"])
def test_recorded_and_given_names_that_the_numbers_contradict_are_refused_with_both_names(source):
    with pytest.raises(Contradiction, match="position 0 is a by name and b by its numbers"):
        resolve(court({"abc": AGAINST}, recovered=proves((0, 1, 2), order=("b", "a", "c"))), [claim("abc", source)])


@pytest.mark.parametrize("claims", [[claim("abc", "recorded")], [claim("abc")]])
def test_another_runs_adapter_is_refused(claims):
    with pytest.raises(Contradiction, match="fit no order of this adapter at all"):
        resolve(court({"abc": FOREIGN}), claims)


def test_another_runs_adapter_is_refused_without_any_claim():
    with pytest.raises(Contradiction, match="fit no order of this adapter at all"):
        resolve(court({}, recovered=FOREIGN), [])


def test_nothing_known_and_silent_numbers_are_refused_with_what_would_settle_it():
    with pytest.raises(Ambiguous) as caught:
        resolve(court({}), [], [{"source": "skeleton", "rule": "trainer", "reason": "12 names for 14 positions"}])
    assert "displacement: B was not zero at the start" in caught.value.what
    assert "trainer: 12 names for 14 positions" in caught.value.what
    assert "--order FILE" in caught.value.fix


def test_two_sources_that_tell_different_names_are_refused():
    with pytest.raises(Ambiguous, match="param_names says 'a', order file says 'b'"):
        resolve(court({"abc": SILENT}), [claim("abc", "recorded", "param_names"), claim("bac", "given", "order file")])


def test_positions_without_state_differ_without_harm():
    heard = {"abc": SILENT}
    found = resolve(court(heard, raw=state(without=(2,))), [claim("abc", "recorded"), replace(claim("ab-", "given"))])
    assert found.verdict == "unverified"
    assert found.undecided == ("a", "b")


PAIR = ("m.lora_A.weight", "m.lora_B.weight", "n.lora_A.weight", "n.lora_B.weight")


def pair_claim(source: str) -> Claim:
    return Claim(source=source, rule=source, names=PAIR, keys=PAIR)


def pair_court(evidence: Evidence) -> Court:
    return replace(court({}, raw=state(4)), verify=lambda claim: evidence)


def test_an_inferred_lora_a_goes_with_its_proven_lora_b():
    found = resolve(pair_court(proves((1, 3), 4, carried=frozenset({0, 2}))), [pair_claim("skeleton")])
    assert (found.verdict, found.undecided) == ("verified", ())
    assert [finding.rule for finding in found.findings] == ["order-by-partner"]


def test_a_recorded_lora_a_does_not_go_with_its_lora_b():
    found = resolve(pair_court(proves((1, 3), 4, carried=frozenset({0, 2}))), [pair_claim("recorded")])
    assert (found.verdict, found.undecided) == ("partial", (PAIR[0], PAIR[2]))


def test_a_lora_a_that_its_own_numbers_speak_against_stays_undecided():
    found = resolve(pair_court(proves((1, 3), 4, carried=frozenset({0}))), [pair_claim("skeleton")])
    assert (found.verdict, found.undecided) == ("partial", (PAIR[2],))


def test_what_is_no_factor_does_not_go_with_its_module():
    keys = ("m.lora_magnitude_vector", *PAIR[1:])
    said = Claim(source="skeleton", rule="skeleton", names=keys, keys=keys)
    found = resolve(pair_court(proves((1, 2, 3), 4, carried=frozenset({0}))), [said])
    assert (found.verdict, found.undecided) == ("partial", ("m.lora_magnitude_vector",))


def test_an_order_made_by_hand_is_taken_where_the_numbers_prove_it_whole():
    heard = {"cba": proves((0, 1, 2)), "abc": AGAINST}
    asked = replace(court(heard, recovered=proves((0, 2), order=("c", "b", "a"))), guesses=lambda: [claim("cba", "convention", "names sorted")])
    found = resolve(asked, [claim("abc")])
    assert (found.verdict, found.names, found.rule) == ("verified", ("c", "b", "a"), "names sorted")


def test_an_order_made_by_hand_is_not_believed_in_part():
    heard = {"cba": proves((0, 2)), "abc": AGAINST}
    asked = replace(court(heard, recovered=proves((0, 2), order=("c", "b", "a"))), guesses=lambda: [claim("cba", "convention", "names sorted")])
    assert resolve(asked, [claim("abc")]).left_out == (1,)


def test_claims_that_differ_only_where_there_is_no_state_are_one():
    heard = {"ab-": replace(proves((0, 1)), undecided=())}
    found = resolve(court(heard, raw=state(without=(2,))), [claim("abc"), claim("abd")])
    assert found.verdict == "verified"
    assert found.names == ("a", "b", None), "no number can decide between c and d"


def test_a_claim_that_says_nothing_of_a_position_without_state_leaves_its_name_to_another():
    heard = {"abc": replace(proves((0, 1)), undecided=())}
    assert resolve(court(heard, raw=state(without=(2,))), [claim("ab-"), claim("abc")]).names == ("a", "b", "c")


def test_a_state_without_moments_keeps_apart_the_orders_that_its_shapes_allow():
    silent = replace(SILENT, undecided=())
    asked = court({"abc": silent, "bac": silent}, raw=state(without=(0, 1, 2)))
    with pytest.raises(Ambiguous, match=r"'a'.*'b'"):
        resolve(asked, [claim("abc"), claim("bac")])


def test_given_names_that_differ_from_recorded_ones_where_there_is_no_state_are_refused():
    with pytest.raises(Ambiguous, match="position 2"):
        resolve(court({"abc": proves((0, 1))}, raw=state(without=(2,))), [claim("abc", "recorded"), claim("abd", "given")])
