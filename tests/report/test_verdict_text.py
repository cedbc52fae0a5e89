"""What `repair` and `verify` say, line by line."""

from __future__ import annotations

from typing import get_args

from ostate.core.naming import ClaimSource
from ostate.report.text import plain
from ostate.report.verdict_text import MEANING, SOURCES, blocks, lines
from tests.documents import REPAIR, VERIFY, changed


def test_a_partial_repair_says_what_is_proven_and_what_is_not():
    assert lines(REPAIR) == [
        "partial: the tensor values prove some names; the others are listed below",
        "WARNING: 1 parameter has a second moment of zeros",
        "  which: base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight",
        "  fix: train one more step, or leave it out",
        "",
        "  names       2 from the rebuilt model: trainer >= 4.53",
        "  chance      1 in 10^31 of such numbers under any other order",
        "  tests       displacement",
        "  rejected    natural sort: the tensor values contradict it",
        "  not tested  balance: step 1: B was zero",
        "",
        "wrote lora.ostate.safetensors: 2 parameters by name",
    ]


def test_a_proven_order_does_not_list_those_it_beat_unless_asked():
    document = changed("verify", "ordering.verdict", "verified")
    assert not any("rejected" in line for line in lines(document))
    assert any("rejected" in line for line in plain(blocks(document, full=True)))


def test_rules_that_say_the_same_are_counted():
    document = changed("verify", "ordering.rule", "module order; nanoGPT; timm")
    assert any("the rebuilt model: module order; 2 other rules give the same order" in line for line in lines(document))
    assert any("the rebuilt model: module order; nanoGPT; timm" in line for line in plain(blocks(document, full=True)))


def test_more_losers_than_fit_are_counted():
    (loser,) = VERIFY["ordering"]["rejected"]
    document = changed("verify", "ordering.rejected", [loser | {"rule": f"{number} layers first"} for number in range(7)])
    assert sum("rejected" in line for line in lines(document)) == 4
    assert any("(3 more: -v shows all)" in line for line in lines(document))


def test_an_order_that_two_sources_lost_with_is_said_once():
    document = changed("verify", "ordering.rejected", VERIFY["ordering"]["rejected"] * 2)
    assert sum("rejected" in line for line in plain(blocks(document, full=True))) == 1


CUT = [
    {"source": "skeleton", "rule": "one group of all trainables; axolotl", "reason": "it makes 1 group, the file has 2"},
    {"source": "skeleton", "rule": "nanoGPT", "reason": "its groups hold [0, 16] parameters, the file's [16, 0]"},
]


def test_rules_whose_groups_are_not_the_files_are_one_line_unless_asked_for():
    document = changed("verify", "ordering.rejected", [*CUT, *VERIFY["ordering"]["rejected"]])
    said = [line.split("rejected")[1].strip() for line in lines(document) if "rejected" in line]
    assert said == [
        "natural sort: the tensor values contradict it",
        "3 rules of other programs, whose groups are not the file's (-v lists them)",
    ]
    assert sum("rejected" in line for line in plain(blocks(document, full=True))) == 3


def test_the_closest_order_says_its_chance_where_no_other_line_does():
    document = changed("verify", "ordering.weakest_alternative", {"what": "layers in descending order", "digits": 4.8})
    assert "  closest     layers in descending order" in lines(document)
    assert "  closest     layers in descending order: 1 in 10^4" in plain(blocks(document, full=True))
    open_ = {**document, "ordering": {**document["ordering"], "margin": None, "silent": {"gauge": "not excluded: layers in descending order"}}}
    assert "  closest   layers in descending order: 1 in 10^4, not excluded by the tests" in lines(open_)
    assert not any("gauge" in line for line in lines(open_))
    recovered = {**open_, "ordering": {**open_["ordering"], "verdict": "recovered"}}
    assert "  closest   layers in descending order: 1 in 10^4 as a whole order, excluded name by name" in lines(recovered)
    alike = {**open_, "ordering": {**open_["ordering"], "weakest_alternative": {"what": "A and B exchanged", "digits": 0.1}}}
    assert "  closest   A and B exchanged: the tests cannot tell it from this one" in lines(alike)


def test_a_dry_run_says_that_nothing_was_written():
    assert lines(changed("repair", "out", []))[-1] == "nothing written (--dry-run)"


def test_an_assumed_name_is_not_called_proven():
    document = {**REPAIR, "ordering": {**REPAIR["ordering"], "verdict": "verified", "assumed": ["the adapter is called 'default'"]}}
    said = "\n".join(lines(document))
    assert "part of the live names is assumed" in said
    assert "the adapter is called 'default'" in said
    assert "prove every name" not in said


def test_a_verdict_fits_eighty_columns():
    assert all(len(f"{verdict}: {meaning}") <= 80 for verdict, meaning in MEANING.items())


def test_every_source_of_names_has_its_words():
    assert set(SOURCES) == set(get_args(ClaimSource))
