"""The table of verdicts, row by row, with claims and evidence made by hand."""

from __future__ import annotations

import pytest

from ostate.core.naming import Question
from ostate.errors import Ambiguous, Contradiction
from ostate.ordering import advice
from ostate.ordering.family import Alternative
from ostate.ordering.resolve import resolve as settled
from tests.ordering.answers import SILENT, Answers, claim, proves, resolve, state
from tests.records import replace

AGAINST = proves((), verdict="contradicted", contradictions=((0, "a", "b"), (1, "b", "a")))
FOREIGN = proves((), verdict="contradicted", other_run=True)


def test_a_claim_that_the_numbers_prove_whole_is_verified():
    found = resolve(Answers({"abc": proves((0, 1, 2)), "bac": AGAINST}), [claim("bac"), claim("abc")])
    assert (found.verdict, found.names) == ("verified", ("a", "b", "c"))
    assert found.rejected[0]["reason"] == "the tensor values prove another order"


def test_recorded_names_that_the_numbers_prove_whole_are_verified():
    found = resolve(Answers({"abc": proves((0, 1, 2))}), [claim("abc", "recorded"), claim("bac")])
    assert (found.verdict, found.source) == ("verified", "recorded")


def test_an_inferred_claim_that_is_contradicted_gives_way_to_the_order_of_the_numbers():
    found = resolve(Answers({"abc": AGAINST}, recovered=proves((0, 1, 2), order=("b", "a", "c"))), [claim("abc")])
    assert (found.verdict, found.source, found.names) == ("recovered", "content", ("b", "a", "c"))
    assert found.rejected[0]["rule"] == "skeleton abc"


def test_without_a_claim_the_numbers_alone_may_give_the_whole_order():
    found = resolve(Answers({}, recovered=proves((0, 1, 2), order=("c", "b", "a"))), [])
    assert (found.verdict, found.names) == ("recovered", ("c", "b", "a"))


def test_claims_that_agree_where_the_numbers_are_undecided_carry_those_names():
    found = resolve(Answers({"abc": proves((0, 1), alone=frozenset((0, 1)))}), [claim("abc")])
    assert (found.verdict, found.names, found.undecided, found.left_out) == ("partial", ("a", "b", "c"), ("c",), ())


def test_claims_that_differ_where_the_numbers_are_undecided_name_only_what_is_proven():
    answers = {"abcd": proves((0, 1), 4), "abdc": proves((0, 1), 4)}
    found = resolve(Answers(answers, raw=state(4)), [claim("abcd"), claim("abdc")])
    assert (found.verdict, found.names, found.keys, found.left_out) == ("partial", ("a", "b", None, None), ("a", "b", None, None), (2, 3))


def test_a_convention_alone_carries_nothing_that_is_not_proven():
    found = resolve(Answers({"abc": proves((0, 1))}), [claim("abc", "convention")])
    assert (found.names, found.left_out) == (("a", "b", None), (2,))


def test_a_convention_and_numbers_that_give_the_same_order_without_it_are_recovered():
    found = resolve(Answers({"abc": proves((0,))}, recovered=proves((0, 1, 2), order=("a", "b", "c"))), [claim("abc", "convention")])
    assert (found.verdict, found.source, found.names) == ("recovered", "convention", ("a", "b", "c"))


def test_of_a_convention_stays_what_the_numbers_alone_say_alike():
    found = resolve(Answers({"abc": SILENT}, recovered=proves((0, 1), order=("a", "c", "b"))), [claim("abc", "convention")])
    assert (found.verdict, found.names, found.left_out) == ("partial", ("a", None, None), (1, 2))


def test_without_a_claim_only_what_is_proven_is_named():
    found = resolve(Answers({}, recovered=proves((0, 2), order=("a", "b", "c"))), [])
    assert (found.verdict, found.names, found.left_out) == ("partial", ("a", None, "c"), (1,))


def test_strict_refuses_to_leave_positions_out():
    with pytest.raises(Ambiguous, match="1 positions have no proven name: 1"):
        resolve(Answers({}, recovered=proves((0, 2), order=("a", "b", "c"))), [], strict=True)


@pytest.mark.parametrize("source", ["recorded", "given", "skeleton"])
def test_one_source_and_silent_numbers_is_unverified(source):
    found = resolve(Answers({"abc": SILENT}), [claim("abc", source)])
    assert (found.verdict, found.undecided) == ("unverified", ("a", "b", "c"))


def test_a_convention_alone_and_silent_numbers_are_refused():
    with pytest.raises(Ambiguous, match="only a convention gives one"):
        resolve(Answers({"abc": SILENT}), [claim("abc", "convention")])


def test_two_claims_that_differ_and_silent_numbers_are_ambiguous_at_the_first_difference():
    with pytest.raises(Ambiguous) as caught:
        resolve(Answers({"abc": SILENT, "acb": SILENT}), [claim("abc", rule="E3"), claim("acb", rule="E1")])
    assert caught.value.why[:2] == ("E3: b", "E1: c")
    assert caught.value.where == "optimizer.pt: position 1"


def test_a_version_stamp_chooses_between_claims_when_the_numbers_are_silent():
    found = resolve(Answers({"abc": SILENT, "acb": SILENT}), [claim("abc"), claim("acb", version_matched=True)])
    assert (found.verdict, found.names) == ("unverified", ("a", "c", "b"))


@pytest.mark.parametrize("source", ["recorded", "given"])
def test_recorded_and_given_names_that_the_numbers_contradict_are_refused_with_both_names(source):
    with pytest.raises(Contradiction, match="position 0 is a by name, b by its values"):
        resolve(Answers({"abc": AGAINST}, recovered=proves((0, 1, 2), order=("b", "a", "c"))), [claim("abc", source)])


def test_of_two_names_that_begin_alike_a_refusal_shows_where_they_part():
    names = tuple(f"base_model.model.layers.{at}.self_attn.q_proj.lora_A.default.weight" for at in range(3))
    against = proves((), verdict="contradicted", contradictions=((0, names[0], names[1]),))
    with pytest.raises(Contradiction) as caught:
        resolve(Answers({"".join(names): against}), [replace(claim("abc", "given"), names=names, keys=names)])
    assert caught.value.why == (
        "position 0 is …layers.0.self_attn.q_proj.lora_A.default.weight by name, …layers.1.self_attn.q_proj.lora_A.default.weight by its values",
    )


@pytest.mark.parametrize(
    ("source", "rule", "recorded", "whose", "mend"),
    [
        ("given", "--order", None, "the names of --order", "correct the names, or drop --order; or pass the adapter"),
        ("recorded", "named", "named", "the names in this file", "repair the training's own checkpoint again; or pass the adapter"),
        ("recorded", "optimizer_param_names.json", None, "the names in optimizer_param_names.json", "correct that file, or move it away; or"),
        ("recorded", "param_names", "param_names", "the names recorded in this state (param_names)", "use another checkpoint; or pass the adapter"),
    ],
)
def test_a_contradiction_says_whose_names_are_wrong_and_what_to_do_with_them(source, rule, recorded, whose, mend):
    with pytest.raises(Contradiction) as caught:
        resolve(Answers({"abc": AGAINST}, raw=replace(state(3), recorded=recorded)), [claim("abc", source, rule=rule)])
    assert caught.value.what == f"the tensor values contradict {whose}"
    assert caught.value.fix.startswith(mend)


@pytest.mark.parametrize("claims", [[claim("abc", "recorded")], [claim("abc")]])
def test_another_runs_adapter_is_refused(claims):
    with pytest.raises(Contradiction, match="fit no order of this adapter"):
        resolve(Answers({"abc": FOREIGN}), claims)


def test_another_runs_adapter_is_refused_without_any_claim():
    with pytest.raises(Contradiction, match="fit no order of this adapter"):
        resolve(Answers({}, recovered=FOREIGN), [])


def test_nothing_known_and_silent_numbers_are_refused_with_what_would_settle_it():
    with pytest.raises(Ambiguous) as caught:
        resolve(Answers({}), [], [{"source": "skeleton", "rule": "trainer", "reason": "12 names for 14 positions"}])
    assert caught.value.what == "cannot determine the parameter order"
    assert caught.value.why == ("displacement: B was not zero at the start", "trainer: 12 names for 14 positions")
    assert "--order FILE" in caught.value.fix


def test_two_sources_that_tell_different_names_are_refused():
    with pytest.raises(Ambiguous, match=r"param_names: a\n.*order file: b"):
        resolve(Answers({"abc": SILENT}), [claim("abc", "recorded", "param_names"), claim("bac", "given", "order file")])


def test_positions_without_state_differ_without_harm():
    answers = {"abc": SILENT}
    found = resolve(Answers(answers, raw=state(without=(2,))), [claim("abc", "recorded"), replace(claim("ab-", "given"))])
    assert found.verdict == "unverified"
    assert found.undecided == ("a", "b")


OPEN = replace(SILENT, weakest_alternative=("another run", 0.0))


def test_an_order_of_the_family_that_the_numbers_prove_whole_is_taken():
    found = resolve(Answers({"bac": OPEN, "abc": proves((0, 1, 2))}), [claim("bac", "convention")])
    assert (found.verdict, found.names) == ("verified", ("a", "b", "c"))
    assert "names sorted" in found.rule


def test_an_order_of_the_family_is_not_believed_in_part():
    with pytest.raises(Ambiguous, match="only a convention gives one"):
        resolve(Answers({"bac": OPEN, "abc": proves((0, 2))}), [claim("bac", "convention")])


def test_an_order_that_only_goes_wrong_is_never_taken_for_what_a_program_meant():
    with pytest.raises(Ambiguous, match="only a convention gives one"):
        resolve(Answers({"abc": OPEN, "cba": proves((0, 1, 2))}), [claim("abc", "convention")])


def test_recorded_names_are_refused_where_the_numbers_prove_another_order_of_the_family():
    reversed_order = Alternative("layers in descending order", ("c", "b", "a"), ("c", "b", "a"))
    with pytest.raises(Contradiction, match="they prove another order: layers in descending order"):
        resolve(Answers({"abc": SILENT}, better=reversed_order), [claim("abc", "recorded")])


def test_a_verified_order_lists_the_names_that_do_not_stand_by_themselves():
    found = resolve(Answers({"abc": proves((0, 1, 2), alone=frozenset({0, 2}))}), [claim("abc")])
    assert (found.verdict, found.proof, found.undecided) == ("verified", "order", ("b",))


def test_a_module_that_stands_apart_keeps_the_verdict_from_verified_and_is_named():
    found = resolve(Answers({"abc": proves((0, 1), alone=frozenset((0, 1)), apart=(2,))}), [claim("abc", "recorded")])
    assert (found.verdict, found.undecided) == ("partial", ("c",))
    assert [(finding.rule, finding.names) for finding in found.findings] == [("module-stands-apart", ("c",))]


@pytest.mark.parametrize("source", ["recorded", "skeleton", "given"])
def test_of_names_that_are_proven_in_part_all_are_listed_that_do_not_stand_by_themselves(source):
    """Somebody may have exchanged them, or the file's entries, by hand, which no other order that was rejected does."""
    found = resolve(Answers({"abc": proves((0, 1), alone=frozenset((0,)))}), [claim("abc", source)])
    assert (found.verdict, found.undecided) == ("partial", ("b", "c"))


def test_of_a_convention_that_the_search_confirms_the_names_are_listed_that_stand_as_an_order_only():
    found = resolve(
        Answers({"abc": proves((0, 1), alone=frozenset((0,)))}, recovered=proves((0, 2), order=("a", None, "c"))), [claim("abc", "convention")]
    )
    assert (found.verdict, found.proof, found.undecided) == ("recovered", "order", ("b",))


def test_claims_that_differ_only_where_there_is_no_state_are_one():
    answers = {"ab-": replace(proves((0, 1)), undecided=())}
    found = resolve(Answers(answers, raw=state(without=(2,))), [claim("abc"), claim("abd")])
    assert found.verdict == "verified"
    assert found.names == ("a", "b", None), "no number can decide between c and d"


def test_a_claim_that_says_nothing_of_a_position_without_state_leaves_its_name_to_another():
    answers = {"abc": replace(proves((0, 1)), undecided=())}
    assert resolve(Answers(answers, raw=state(without=(2,))), [claim("ab-"), claim("abc")]).names == ("a", "b", "c")


def test_a_state_without_moments_keeps_apart_the_orders_that_its_shapes_allow():
    silent = replace(SILENT, undecided=())
    asked = Answers({"abc": silent, "bac": silent}, raw=state(without=(0, 1, 2)))
    with pytest.raises(Ambiguous, match=r": a\n.*: b"):
        resolve(asked, [claim("abc"), claim("bac")])


def test_given_names_that_differ_from_recorded_ones_where_there_is_no_state_are_refused():
    with pytest.raises(Ambiguous, match="position 2"):
        resolve(Answers({"abc": proves((0, 1))}, raw=state(without=(2,))), [claim("abc", "recorded"), claim("abd", "given")])


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"adapter": "lora"}, ("--order FILE", "--base DIR", "--previous DIR")),
        ({"adapter": "lora", "base": "base"}, ("--order FILE", "--previous DIR")),
        ({"adapter": "lora", "base": "base", "previous": "earlier"}, ("--order FILE",)),
        ({"adapter": "lora", "base": "base", "previous": "earlier", "order": "names.txt"}, ()),
        ({}, ("--adapter DIR", "--order FILE")),
        ({"base": "base"}, ("--adapter DIR", "--order FILE")),
        ({"evidence": False}, ("--no-evidence",)),
    ],
)
def test_advice_never_names_what_was_given_and_names_the_adapter_where_none_was_found(given, left):
    text = advice.ways(advice.given(Question(raw=state(), **given)), advice.ORDER, advice.BASE, advice.PREVIOUS)
    assert tuple(option for option in ("--no-evidence", "--adapter DIR", "--order FILE", "--base DIR", "--previous DIR") if option in text) == left
    assert left or text.startswith("no other option can help")


def test_a_refusal_advises_only_what_is_left():
    asked = Question(raw=state(), base="base")
    with pytest.raises(Ambiguous) as error:
        settled(asked, [claim("abc", "convention")], [], Answers({"abc": SILENT}))
    assert "--adapter DIR" in error.value.fix
    assert "--base" not in error.value.fix
