"""Rules of one operator each that no other test would miss: found by changing them one at a time (`python -m tests.mutate`)."""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from ostate.core.names import strip_wrappers
from ostate.core.naming import Adapter, Evidence, Question
from ostate.core.state import Group, RawState
from ostate.core.tensors import TensorRef
from ostate.errors import Ambiguous, Contradiction
from ostate.evidence.densities import fit_densities
from ostate.evidence.master_weights import with_master_weights
from ostate.evidence.paths import Paths
from ostate.evidence.permutation_odds import odds_against
from ostate.evidence.search import Scores, from_keys, module_scores, single_scores
from ostate.evidence.tables.tables import gather
from ostate.ordering.grouping.refute import fits, refute_groups, refute_positions
from ostate.ordering.keys import adapter_key, dora_is_a_parameter, live_name, match_all
from ostate.ordering.sources.recorded import recorded
from tests.evidence.numbers import Toy, trained
from tests.ordering.answers import Answers, claim, proves, resolve, state
from tests.records import replace

module_orders = importlib.import_module("ostate.ordering.sources.module_orders")
convention = importlib.import_module("ostate.ordering.sources.convention")  # the package may give functions of these names
judge = importlib.import_module("ostate.evidence.judge")
REF = TensorRef(dtype="F32", shape=(2,), parts=())
P = "base_model.model.model.layers.0.self_attn.q_proj."


# resolve


def test_a_claim_that_wins_is_not_among_the_losers():
    found = resolve(Answers({"abc": proves((0, 1, 2)), "acb": proves((0,))}), [claim("acb"), claim("abc")])
    assert [(loser["rule"], loser["reason"]) for loser in found.rejected] == [("skeleton acb", "the tensor values prove another order")]


def test_of_claims_that_differ_the_one_that_speaks_is_not_among_the_losers():
    found = resolve(Answers({"abc": proves((0,)), "acb": proves(())}), [claim("acb"), claim("abc")])
    assert [loser["rule"] for loser in found.rejected] == ["skeleton acb"]


def test_a_version_stamp_says_which_claims_it_puts_aside():
    silent = proves(verdict="silent")
    found = resolve(Answers({"abc": silent, "acb": silent}), [claim("abc"), claim("acb", version_matched=True)])
    assert [(loser["rule"], loser["reason"]) for loser in found.rejected] == [("skeleton abc", "the recorded library version uses another rule")]


def test_leaving_positions_out_is_refused_only_when_asked():
    asked = Answers({}, recovered=proves((0, 2), order=("a", "b", "c")))
    assert resolve(asked, []).left_out == (1,)
    with pytest.raises(Ambiguous):
        resolve(asked, [], strict=True)


@pytest.mark.parametrize("source", ["skeleton", "recorded"])
@pytest.mark.parametrize("verdict", ["verified", "silent"])
def test_where_nothing_is_proven_nothing_is_called_proven_in_part(source, verdict):
    assert resolve(Answers({"abc": proves((), verdict=verdict)}), [claim("abc", source)]).verdict == "unverified"


def test_claims_that_differ_at_once_are_told_apart_at_position_0():
    silent = proves(verdict="silent")
    with pytest.raises(Ambiguous) as caught:
        resolve(Answers({"abc": silent, "bac": silent}), [claim("abc"), claim("bac")])
    assert caught.value.where == "optimizer.pt: position 0"


@pytest.mark.parametrize("pairs", [3, 5])
def test_a_contradiction_shows_three_pairs_and_keeps_the_rest(pairs):
    against = proves(verdict="contradicted", contradictions=tuple((at, "a", "b") for at in range(pairs)))
    with pytest.raises(Contradiction) as caught:
        resolve(Answers({"abc": against}), [claim("abc", "recorded")])
    assert str(caught.value).count("by its values") == 3
    assert len(caught.value.why) == pairs


@pytest.mark.parametrize(("count", "text"), [(8, ": 0, 1, 2, 3, 4, 5, 6, 7"), (9, ": 0, 1, 2, 3, 4, 5, 6, 7, …")])
def test_a_strict_refusal_lists_eight_positions(count, text):
    evidence = proves((9,), 10, order=(None,) * 9 + ("j",), verdict="verified")
    raw = state(10)
    entries = tuple(replace(entry, slots={} if count <= entry.position < 9 else entry.slots) for entry in raw.entries)
    with pytest.raises(Ambiguous) as caught:
        resolve(Answers({}, recovered=evidence, raw=replace(raw, entries=entries)), [], strict=True)
    assert caught.value.what.endswith(text)


@pytest.mark.parametrize(
    ("version_matched", "chosen"), [((False, False), "first"), ((True, True), "first"), ((False, True), "second"), ((True, False), "first")]
)
def test_of_claims_that_say_the_same_the_first_is_taken_unless_a_later_one_is_version_matched(version_matched, chosen):
    claims = [replace(claim("abc", version_matched=matched), rule=rule) for matched, rule in zip(version_matched, ("first", "second"))]
    assert resolve(Answers({"abc": proves((0, 1, 2))}), claims).rule == chosen


# keys


def adapter(
    *keys: str, name: str = "default", siblings: tuple[str, ...] = (), file: str = "a", facts: dict | None = None, **config: object
) -> Adapter:
    held = dict.fromkeys(keys, REF)
    return Adapter(path="a", file=file, kind="peft", tensors=held, config=config, name=name, siblings=siblings, facts=facts or {})


def test_a_parameter_of_a_module_called_module_loses_the_wrapper_only():
    assert strip_wrappers("module.weight") == "weight"
    assert strip_wrappers("module") == "module"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        # where the adapter's name begins another component, taking it out everywhere gives another key
        ("base_model.model.default_head.modules_to_save.default.dense.bias", "base_model.model.default_head.dense.bias"),
        ("base_model.model.default_head.lora_A.default.weight", "base_model.model.default_head.lora_A.weight"),
        ("base_model.model.default_emb.lora_embedding_A.default", "base_model.model.default_emb.lora_embedding_A"),
        ("base_model.model.default_head.lora_magnitude_vector.default.weight", "base_model.model.default_head.lora_magnitude_vector"),
        # an adapter joined from beside this one keeps its name
        ("base_model.model.score.modules_to_save.second.weight", "base_model.model.score.second.weight"),
        (f"{P}lora_magnitude_vector.second.weight", f"{P}lora_magnitude_vector.second"),
        ("lora_magnitude_vector.second.weight", "lora_magnitude_vector.second"),
        ("lora_magnitude_vector.default.weight", "lora_magnitude_vector"),
    ],
)
def test_every_form_of_a_key_is_found_by_its_own_rule(name, key):
    assert adapter_key(name, adapter(key)) == key


def test_a_parameter_is_not_found_under_half_of_its_name():
    """Only a DoRA vector is known by the name before `.default.weight`; `lora_A` is not."""
    assert adapter_key(f"{P}lora_A.default.weight", adapter(f"{P}lora_A")) is None
    assert adapter_key("default.weight", adapter("weight")) == "weight"
    assert adapter_key("base_model.model.head.modules_to_save.other.weight", adapter("base_model.model.head.weight")) is None


@pytest.mark.parametrize("name", ["nothing", "default", "default.other", "a.default.other", f"{P}lora_A.default.weight"])
def test_a_name_of_any_length_that_the_file_lacks_has_no_key(name):
    """The one tensor of VB-LoRA's bank is no other parameter's."""
    assert adapter_key(name, adapter("base_model.vblora_vector_bank")) is None
    assert adapter_key("base_model.vblora_vector_bank.default", adapter("base_model.vblora_vector_bank")) == "base_model.vblora_vector_bank"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (f"{P}lora_A.second.weight", f"{P}lora_A.second.weight"),
        (f"{P}lora_magnitude_vector.second", f"{P}lora_magnitude_vector.second.weight"),
        (f"{P}lora_magnitude_vector.second.weight", f"{P}lora_magnitude_vector.second.weight"),
        ("base_model.model.emb.lora_embedding_A.second", "base_model.model.emb.lora_embedding_A.second"),
        ("base_model.model.score.second.weight", "base_model.model.score.modules_to_save.second.weight"),
        (f"{P}lora_A.weight", f"{P}lora_A.first.weight"),
        ("score.second.weight", "score.modules_to_save.second.weight"),
        ("second.weight", "second.weight"),
    ],
)
def test_a_key_of_joined_adapters_gets_the_name_of_the_one_it_belongs_to(key, name):
    assert live_name(key, adapter(key, name="first", siblings=("run/first", "run/second"))) == name


def test_most_names_tell_what_the_adapter_is_called():
    keys = [f"{P}lora_A.weight", f"{P}lora_B.weight", "base_model.model.score.weight"]
    names = [f"{P}lora_A.french.weight", f"{P}lora_B.french.weight", "base_model.model.score.modules_to_save.french.weight"]
    assert match_all(names, adapter(*keys)) == (tuple(keys), "french")
    assert match_all(["lora_A.french.weight"], adapter("lora_A.weight")) == (("lora_A.weight",), "french")
    assert match_all(names[2:], adapter(*keys)) == ((keys[2],), "french")
    assert match_all(["x.lora_A.german.weight", f"{P}lora_A.french.weight"], adapter(keys[0]))[1] == "french"


@pytest.mark.parametrize(("version", "bare"), [("0.8.2", False), ("0.9.0", True), ("0.11.1", True), ("0.12.0", False)])
def test_doras_vector_was_a_bare_parameter_in_these_releases(version, bare):
    assert dora_is_a_parameter(adapter(facts={"peft_version": version})) is bare


# refute


def grouped(sizes: list[int], **hyper: list[object]) -> RawState:
    raw, at, groups = state(sum(sizes)), 0, []
    for index, size in enumerate(sizes):
        own = {key: values[index] for key, values in hyper.items()}
        groups.append(Group(index=index, positions=tuple(range(at, at + size)), hyper=own))
        at += size
    return replace(raw, groups=tuple(groups))


def test_a_group_that_should_not_decay_refutes_only_where_it_holds_something_that_does():
    assert refute_groups(grouped([2, 1], weight_decay=[0.1, 0.01]), [2, 1], no_decay=[1]) == "its group 1 has no weight decay, the file's has 0.01"
    assert refute_groups(grouped([2, 1], weight_decay=[0.1, 0.0]), [2, 1], no_decay=[1]) is None
    assert refute_groups(grouped([2, 0], weight_decay=[0.1, 0.1]), [2, 0], no_decay=[1]) is None
    assert refute_groups(grouped([2, 1], weight_decay=[0.1, None]), [2, 1], no_decay=[1]) is None


def test_two_learning_rates_refute_a_rule_that_gives_one():
    assert "one learning rate, the file has [0.1, 0.2]" in (refute_groups(grouped([2, 1], lr=[0.1, 0.2]), [2, 1], same_lr=[[0, 1]]) or "")
    assert refute_groups(grouped([2, 1], lr=[0.1, 0.1]), [2, 1], same_lr=[[0, 1]]) is None


def test_counts_of_groups_are_said_in_good_english():
    assert refute_groups(grouped([2, 1]), [3]) == "it makes 1 group, the file has 2"
    assert refute_groups(grouped([3]), [2, 1]) == "it makes 2 groups, the file has 1"


def test_an_entry_of_unknown_shape_fits_and_a_flat_one_by_its_size():
    entry = state().entries[0]
    assert fits(replace(entry, shape=None), (7, 7))
    assert fits(replace(entry, shape=(12,), flat=True), (3, 4))
    assert not fits(replace(entry, shape=(12,), flat=True), (3, 5))
    assert not fits(replace(entry, shape=(12,)), (3, 4))


def test_a_wrong_shape_is_said_of_the_key_where_there_is_one():
    held = Adapter(path="a", file="a", kind="peft", tensors={"k": replace(REF, shape=(3,))}, config={}, name="default")
    raw = state(1)
    assert refute_positions(raw, ["n"], ["k"], [None], held) == "position 0 has shape [2], k has [3]"
    assert refute_positions(raw, ["n"], [None], [(3,)], held) == "position 0 has shape [2], n has [3]"


# recorded


def test_a_names_file_of_groups_is_held_to_the_files_groups(tmp_path):
    (tmp_path / "optimizer_param_names.json").write_text(json.dumps([["a"], ["b", "c"]]))
    raw = replace(grouped([2, 1]), source=str(tmp_path / "optimizer.pt"))
    claims, lost = recorded(Question(raw=raw, adapter=None))
    assert claims == []
    assert "its groups list [1, 2] parameters, the file's [2, 1]" in lost[0]["reason"]


@pytest.mark.parametrize("remote", [False, True])
def test_a_names_file_is_looked_for_beside_a_local_state_only(tmp_path, monkeypatch, remote):
    (tmp_path / "optimizer_param_names.json").write_text(json.dumps(["a", "b", "c"]))
    monkeypatch.chdir(tmp_path)
    raw = replace(state(), source="s3://bucket/optimizer.pt" if remote else "optimizer.pt")
    claims, _ = recorded(Question(raw=raw, adapter=None))
    assert [one.names for one in claims] == ([] if remote else [("a", "b", "c")])


# master weights


class Numbers:
    """A tensor in memory that satisfies `Slot`."""

    encoding, dtype = "plain", "F32"

    def __init__(self, values: list[float]) -> None:
        self.values = np.array(values, np.float32)
        self.shape, self.numel = self.values.shape, self.values.size

    def read(self) -> np.ndarray:
        return self.values

    def chunks(self, elements: int = 1 << 18):
        yield from (self.values[at : at + elements] for at in range(0, self.numel, elements))


def kept_weights(*columns: list[float], weights: list[list[float]] | None = None) -> tuple[RawState, Adapter, tuple[str, ...]]:
    keys = tuple("abc"[: len(columns)])
    held = Adapter(path="a", file="a", kind="peft", tensors=dict(zip(keys, map(Numbers, columns))), config={}, name="default")
    return replace(state(len(keys)), master={at: Numbers(values) for at, values in enumerate(weights or columns)}), held, keys


@pytest.mark.parametrize(("numbers", "enough"), [(8, True), (7, False)])
def test_eight_equal_numbers_are_enough_and_seven_are_not(numbers, enough):
    column = [0.5] * numbers + [0.0] * (9 - numbers)
    raw, held, keys = kept_weights(column)
    said = with_master_weights(Evidence(verdict="silent", undecided=(0,)), keys, raw, held)
    assert said.proven == (frozenset({0}) if enough else frozenset())


def test_a_tensor_that_only_begins_like_the_master_weights_is_not_theirs():
    one = [float(at) for at in range(1, 10)]
    raw, held, keys = kept_weights(one, one * 2)
    assert with_master_weights(Evidence(verdict="silent", undecided=(0, 1)), keys, raw, held).proven == {0, 1}
    strip = 1 << 17
    long = np.full(2 * strip + 3, 0.5)
    other = long.copy()
    other[-1] = 0.75
    raw, held, keys = kept_weights(long, other, weights=[long, other])
    assert with_master_weights(Evidence(verdict="silent", undecided=(0, 1)), keys, raw, held).proven == {0, 1}


def test_master_weights_that_prove_an_order_are_of_this_run():
    one, two = [float(at) for at in range(1, 10)], [float(-at) for at in range(1, 10)]
    foreign = Evidence(verdict="contradicted", undecided=(0, 1), other_run=True)
    raw, held, keys = kept_weights(one, two)
    assert not with_master_weights(foreign, keys, raw, held).other_run
    raw, held, keys = kept_weights(one, two, weights=[two, one])
    said = with_master_weights(foreign, keys, raw, held)
    assert said.contradictions
    assert said.other_run


# judge, match


TABLES = SimpleNamespace(keys_of_shape={(2,): ("a", "b")}, positions_of_shape={(2,): (0, 1)}, silent={})
"""Two keys and two positions of one shape: what `Scores` looks at."""


def judged(wrong: dict[int, float], claimed: tuple[str, ...] | None) -> Evidence:
    """The verdict where the best order is a, b, and these are the odds against each."""
    odds = judge.Odds(wrong=wrong, score=dict.fromkeys(wrong, 9.0))
    return judge.weigh(odds, {"a": 0, "b": 1}, state(2), believed={0, 1}, overthrown={0: 5e-7, 1: 5e-7}, claimed=claimed)


@pytest.mark.parametrize(
    ("wrong", "proven"),
    [
        ({0: 4e-7, 1: 5e-7}, {0, 1}),
        ({0: 6e-7, 1: 5e-7}, {1}),  # each is sure enough, both together are not: the surer one is kept
        ({0: 2e-6, 1: 1e-9}, {1}),
        ({0: 1e-3, 1: 1e-2}, set()),
    ],
)
def test_odds_of_a_wrong_name_anywhere_in_the_file_sum_to_a_millionth_at_most(wrong, proven):
    said = judged(wrong, ("a", "b"))
    assert said.proven == proven
    assert said.verdict == ("verified" if proven else "silent")


@pytest.mark.parametrize(("odds", "verdict"), [(1e-9, "contradicted"), (4e-7, "contradicted"), (6e-7, "silent"), (0.5, "silent")])
def test_a_claim_is_contradicted_only_where_the_odds_are_below_a_millionth_of_the_search(odds, verdict):
    said = judged({0: odds, 1: odds}, ("b", "a"))
    assert said.verdict == verdict
    assert len(said.contradictions) == (2 if verdict == "contradicted" else 0)


def test_scores_that_are_no_numbers_say_nothing():
    scores = Scores(TABLES)
    scores.put("a", np.array([np.nan, -np.inf]))
    assert scores.by_shape[(2,)].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    scores.add("b", np.array([np.inf, 3.0]))
    assert scores.by_shape[(2,)].tolist() == [[0.0, 0.0], [0.0, 3.0]]


def test_what_is_preferred_wins_where_nothing_decides_and_nowhere_else():
    scores = Scores(TABLES)
    assert scores.assign(prefer={"a": 1, "b": 0}) == {"a": 1, "b": 0}
    scores = Scores(TABLES)
    scores.put("a", np.array([0.01, 0.0]))
    assert scores.assign(prefer={"a": 1, "b": 0}) == {"a": 0, "b": 1}


# convention


def test_siblings_are_ordered_by_the_row_that_holds_both_and_by_no_other():
    for row in module_orders.BESIDE:
        for at, one in enumerate(row):
            for later in row[at + 1 :]:
                assert (
                    convention._before(one, later, convention._NOTHING, peft=False)
                    < 0
                    < convention._before(later, one, convention._NOTHING, peft=False)
                )
    with pytest.raises(LookupError):
        convention._before("down_blocks", "nobody_knows", convention._NOTHING, peft=False)
    with pytest.raises(LookupError):
        convention._before("nobody_knows", "down_blocks", convention._NOTHING, peft=False)


def test_places_are_compared_from_the_first_on():
    for row, words in enumerate(module_orders.PLACES):
        for later in module_orders.PLACES[row + 1 :]:
            one = next((word for word in words if word not in sum(module_orders.BESIDE, ())), None)
            other = next((word for word in later if word not in sum(module_orders.BESIDE, ())), None)
            if one and other:
                assert (
                    convention._before(one, other, convention._NOTHING, peft=False)
                    < 0
                    < convention._before(other, one, convention._NOTHING, peft=False)
                )


def test_a_name_comes_before_what_it_begins():
    assert convention.in_order([convention.read_path(name) for name in ("model.layers.0.x", "model.layers.0")], {}) == [
        "model.layers.0",
        "model.layers.0.x",
    ]


def test_a_convention_says_what_it_is_and_speaks_of_adapters_only():
    keys = [f"base_model.model.model.layers.{layer}.self_attn.{word}.lora_A.weight" for layer in (0, 1) for word in ("q_proj", "v_proj")]
    ((rule, found),) = convention.orders_by_convention(keys[::-1])
    assert rule == "module order of Llama and models like it"
    assert found == keys
    assert convention.convention(Question(raw=state(), adapter=None)) == ([], [])
    whole = [key.removeprefix("base_model.model.").replace(".lora_A", "") for key in keys]
    assert convention.convention(Question(raw=state(), adapter=replace(adapter(*whole), kind="model"))) == ([], [])
    claims, _ = convention.convention(Question(raw=state(4), adapter=adapter(*keys)))
    assert claims
    assert all(one.rule.startswith("module order of Llama and models like it") for one in claims)


def odds_of_one(table: list[list[float]], *, complete: bool = True) -> float:
    """The odds against position 0 for key `a`, where other keys or other positions of the shape are free."""
    tables = SimpleNamespace(keys_of_shape={(2,): tuple("ab"[: len(table)])}, positions_of_shape={(2,): tuple(range(len(table[0])))})
    scores = Scores(tables)
    scores.by_shape[2,] = np.array(table)
    odds = judge.Odds()
    judge._odds_of_shape(odds, tables, scores, (2,), {"a": 0}, complete=complete)
    return odds.wrong[0]


def test_what_is_free_is_a_rival_at_its_own_score():
    """A cycle through the rival weighs exp of what it would gain: see `odds_against`."""
    assert odds_of_one([[5.0], [1.0]]) == pytest.approx(np.exp(-4) / (1 - np.exp(-4)))
    assert odds_of_one([[5.0, 2.0]]) == pytest.approx(np.exp(-3) / (1 - np.exp(-3)))
    assert odds_of_one([[5.0]]) < 1e-30


def test_a_key_of_its_own_shape_needs_no_numbers_and_any_other_does():
    assert odds_of_one([[0.0]]) < 1e-30
    assert odds_of_one([[0.0]], complete=False) == np.inf
    assert odds_of_one([[0.0], [-5.0]]) == np.inf
    assert odds_of_one([[-3.5]]) == np.inf
    assert odds_of_one([[-2.5]]) < 1e-30


def test_the_odds_are_those_of_moving_one_factor_a_module_and_of_lying_elsewhere_together():
    known, _ = trained(Toy(layers=4, steps=5, rank=2))  # few enough that each of the three matters
    tables = gather(known.raw, known.adapter, previous=None, base=None)
    paths, match = Paths(tables.reader, tables.displaced), from_keys(known.keys, tables)
    now = fit_densities(tables, paths, match)
    alone = judge.Odds()
    scores = single_scores(tables, paths, match, now)
    for shape in scores.by_shape:
        judge._odds_of_shape(alone, tables, scores, shape, match, complete=True)
    (pair,) = tables.pairs
    rows, table = module_scores(pair, match, now, displaced=True)
    elsewhere = judge._elsewhere(tables, pair, rows, match, now, judge._chances(tables, paths, match, now))
    more = {match[pair.modules[row].zero]: odds for row, odds in zip(rows, odds_against(table) + elsewhere)}
    more |= {match[pair.modules[row].other]: odds for row, odds in zip(rows, odds_against(table) + elsewhere)}
    found = judge._odds_of(tables, paths, match, now).wrong
    assert all(odds > 1e-8 for odds in elsewhere)
    assert found == pytest.approx({position: odds + more[position] for position, odds in alone.wrong.items()}, rel=1e-9)
