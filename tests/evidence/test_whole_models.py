"""A whole model's own state, without its base: products of its weights prove the order of its layers; what leaves no trace stays undecided."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from ostate.commands.repair import repair
from ostate.core.naming import Claim
from ostate.evidence.comparison import Comparison
from ostate.evidence.exchanged import exchanged
from ostate.evidence.look import Source
from ostate.evidence.looks import Place
from ostate.evidence.methods import units_of
from tests import trained
from tests.evidence import runs, small_runs
from tests.evidence.method_runs import saved_steps, train_whole
from tests.evidence.numbers import Known
from tests.evidence.test_methods import ask, renamed
from tests.records import replace


def bert() -> object:
    """Return a random BERT of hidden size 32, whose attention registers query, key, value, output side by side in one shape."""
    from transformers import BertConfig, BertForMaskedLM

    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 8, "max_position_embeddings": 64}
    return BertForMaskedLM(BertConfig(vocab_size=trained.VOCABULARY, **size))


def phi() -> object:
    """Return a random Phi of hidden size 32, whose attention ends in a layer called `dense`; its blocks have no gate."""
    from transformers import PhiConfig, PhiForCausalLM

    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 8, "max_position_embeddings": 64}
    return PhiForCausalLM(PhiConfig(vocab_size=trained.VOCABULARY, pad_token_id=0, **size))


MODELS = {
    "bert": bert,
    "phi": phi,
    "llama": lambda: trained.llama(8),
    "grouped heads": lambda: trained.llama(8, num_key_value_heads=2),
    "opt": lambda: trained.opt(8),
}
OPEN = {
    "bert": {"query and key"},
    "llama": {"embed_tokens and lm_head", "q_proj and k_proj", "input_layernorm and post_attention_layernorm"},
    "grouped heads": {"embed_tokens and lm_head", "input_layernorm and post_attention_layernorm"},
    "phi": {"q_proj and k_proj"},
    "opt": {"k_proj and q_proj", "self_attn_layer_norm and layers.#.final_layer_norm"},
}
"""What no test tells: both members are read by the same two sides, or lie in the residual stream."""
TESTED = re.compile(r"(?:v_proj|o_proj|out_proj|up_proj|down_proj|value|attention\.output\.dense)\.weight")


@pytest.fixture(scope="module", params=MODELS)
def run(request, tmp_path_factory):
    (folder,) = train_whole(tmp_path_factory.mktemp("whole"), MODELS[request.param], [10])
    return request.param, runs.known(folder)


def test_all_orders_but_the_few_that_leave_no_trace_are_ruled_out(run):
    name, known = run
    found = ask(known, known.keys)
    assert found.verdict == "verified"
    assert found.apart == ()
    assert {what.removesuffix(" exchanged in every layer") for what, _ in found.open} == OPEN[name]
    left = {re.sub(r"\d+", "#", str(known.keys[p])) for p in found.undecided}
    assert not [key for key in left if re.search(r"v_proj|o_proj|out_proj|up_proj|down_proj|gate_proj|fc\d", key)]


@pytest.mark.parametrize("layers", [{i: 7 - i for i in range(8)}, {i: (i + 1) % 8 for i in range(8)}], ids=["reversed", "shifted"])
def test_layers_in_another_order_are_never_verified(run, layers):
    name, known = run
    found = ask(known, renamed(known.keys, layers))
    assert not found.proven, name


@pytest.mark.parametrize("pair", [("v_proj", "o_proj"), ("v_proj", "out_proj"), ("v_proj", "k_proj"), ("q_proj", "o_proj"), ("gate_proj", "up_proj")])
def test_kinds_exchanged_in_every_layer_are_never_verified(run, pair):
    name, known = run
    swap = dict(zip(pair, pair[::-1]))
    keys = tuple(re.sub("|".join(pair), lambda found: swap[found[0]], str(key)) for key in known.keys)
    if set(keys) == set(known.keys) and keys != known.keys:
        if any(known.adapter.tensors[key].shape != known.raw.entries[p].shape for p, key in enumerate(keys)):
            return
        assert not {p for p in ask(known, keys).proven if keys[p] != known.keys[p]}, name


def test_two_layers_exchanged_by_hand_are_not_proven(run):
    name, known = run
    keys = renamed(known.keys, {2: 5, 5: 2})
    found = ask(known, keys)
    tested = {
        p
        for p in range(len(keys))
        if keys[p] != known.keys[p] and re.search(r"v_proj.w|o_proj|out_proj.w|up_proj|down_proj|value.w|attention.output.dense.w", str(keys[p]))
    }
    assert not tested & found.proven, name


def test_another_runs_weights_are_never_verified(run, tmp_path):
    name, known = run
    (other,) = train_whole(tmp_path, MODELS[name], [10], seed=2)
    assert ask(replace(known, adapter=runs.known(other).adapter), known.keys).verdict != "verified"


def test_layers_beside_each_others_moments_have_uniform_ranks(run):
    _, known = run
    looks, at = Comparison(known.raw, known.adapter).looks, {key: position for position, key in enumerate(known.keys)}
    for how in ("whole", "zero", "other"):
        values: dict[str, list[float]] = {}
        for one, unit in enumerate(looks.modules):
            for two, other in enumerate(looks.modules):
                if one == two or unit.group != other.group:
                    continue
                place = Place(one, at[other.zero] if how != "other" else at[unit.zero], at[other.other] if how != "zero" else at[unit.other])
                for ranked in looks.ranked([place], how):
                    spread = np.random.default_rng((one, two)).random(len(ranked))
                    values.setdefault(str(unit.group), []).extend((found.rank - each) / found.size for found, each in zip(ranked, spread))
        for group, found in values.items():
            assert kstest(found, "uniform").pvalue > 1e-4, (group, how, len(found))


def alike(monkeypatch: pytest.MonkeyPatch, rank: int, width: int, count: int) -> list[Known]:
    """Return modules whose two factors are (rank, width) and (width, rank), each a run of its own."""
    monkeypatch.setattr(small_runs, "INTO", width)
    monkeypatch.setattr(small_runs, "OUT", width)
    made = small_runs.train(np.random.default_rng(rank), count, rank, steps=5, shared=0.5)
    return [small_runs.one_of(made, number) for number in range(count)]


@pytest.mark.parametrize(("rank", "width"), [(4, 4), (8, 8), (12, 12), (5, 12), (6, 10)])
def test_a_pairs_own_factors_of_one_size_are_told_apart_exactly(monkeypatch, rank, width):
    """Square ones, or flat as FSDP1 keeps them. The own order stands first among all turns of its opposite; the opposite stands anywhere."""
    own, opposite, half = [], [], []
    modules = alike(monkeypatch, rank, width, 150)
    for known, unrelated in zip(modules, [*modules[1:], modules[0]]):
        (unit,) = units_of(known.adapter)
        source, (other, zero) = Source(known.raw, known.adapter), range(2)
        (right,), (wrong,) = exchanged(source, unit, zero, other), exchanged(source, unit, other, zero)
        own.append(right.rank / right.size)
        opposite.append((wrong.rank - np.random.default_rng(len(own)).random()) / wrong.size)
        mixed = known.raw._replace(entries=(known.raw.entries[1]._replace(position=0), unrelated.raw.entries[0]._replace(position=1)))
        (wrong,) = exchanged(Source(mixed, known.adapter), unit, 1, 0, (False, True))
        half.append((wrong.rank - np.random.default_rng(len(own)).random()) / wrong.size)
    assert np.median(own) <= max(0.01, 1.01 / right.size)
    assert kstest(opposite, "uniform").pvalue > 1e-4
    assert kstest(half, "uniform").pvalue > 1e-4


def test_a_state_whose_eps_is_several_numbers_is_searched_too(tmp_path):
    """Adafactor keeps (1e-30, 1e-3) there, which no tensor's start or product needs."""
    from transformers import Adafactor

    steps = lambda params, lr: Adafactor(params, lr=lr, beta1=0.9, relative_step=False, scale_parameter=False)  # noqa: E731
    (folder,) = train_whole(tmp_path, lambda: trained.llama(2), [2], optimizer=steps)
    known = runs.known(folder)
    claim = Claim(source="recorded", rule="live names", names=known.keys, keys=known.keys)
    assert Comparison(known.raw, known.adapter).search(claim).verdict == "silent"


def test_a_model_rebuilt_by_the_release_that_trained_it_is_proven_whole_and_by_another_in_part(tmp_path):
    """Which of q and k is defined first is a matter of the release; what the numbers do not tell stands with it."""
    (folder,) = train_whole(tmp_path, lambda: trained.llama(6), [3])
    found = repair(str(folder)).ordering
    assert (found.verdict, found.proof) == ("verified", "order")
    assert {f"model.layers.0.self_attn.{kind}_proj.weight" for kind in "qk"} <= set(found.undecided)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "4.30.2"}))
    found = repair(str(folder)).ordering
    assert found.verdict == "partial"
    open_names = [name for position, name in enumerate(found.names) if position not in found.evidence.proven]
    assert all(re.search("[qk]_proj|norm|embed|head", name) for name in open_names)
    assert set(open_names) <= set(found.undecided)


def test_a_model_trained_by_averaged_steps_is_proven_with_its_base(tmp_path):
    """Adafactor's first moment is an average of steps: no product balances, but every matrix moved along it."""
    from transformers import Adafactor

    steps = lambda params, lr: Adafactor(params, lr=lr, beta1=0.9, relative_step=False, scale_parameter=False)  # noqa: E731
    (tmp_path / "run").mkdir()
    (folder,) = train_whole(tmp_path / "run", lambda: saved_first(trained.llama(4), tmp_path / "base"), [3], optimizer=steps)
    assert repair(str(folder)).ordering.verdict == "unverified"
    assert repair(str(folder), base=str(tmp_path / "base")).ordering.verdict == "verified"


def saved_first(model, folder):
    model.save_pretrained(folder)
    return model


def test_a_vision_transformer_is_proven_by_the_keys_that_it_was_saved_under(tmp_path):
    """transformers 5 saves it under the names of older releases: `attention.attention.value` for `attention.v_proj`."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(1)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 6, "image_size": 28, "patch_size": 14}
    model = ViTForImageClassification(ViTConfig(**size))
    named = dict(model.named_parameters())
    stepper = torch.optim.AdamW(named.values(), lr=1e-3)

    def loss(net: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
        labels = torch.randint(2, (4,), generator=generator)
        return net(pixel_values=torch.randn(4, 3, 28, 28, generator=generator), labels=labels).loss

    (folder,) = saved_steps(tmp_path, model, loss, named, stepper, [4], 1)
    found = repair(str(folder)).ordering
    assert (found.verdict, list(found.names)) == ("verified", list(named))


def test_names_under_which_a_model_was_saved_are_assumed_where_no_rebuilt_model_has_them(tmp_path):
    """transformers 5 joins Mixtral's experts and saves them apart, under the names of older releases."""
    from transformers import MixtralConfig, MixtralForCausalLM

    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 4}

    def make() -> MixtralForCausalLM:
        config = MixtralConfig(vocab_size=trained.VOCABULARY, num_local_experts=4, max_position_embeddings=64, pad_token_id=0, **size)
        return saved_first(MixtralForCausalLM(config), tmp_path / "base")

    (tmp_path / "run").mkdir()
    (folder,) = train_whole(tmp_path / "run", make, [4])
    live = json.loads((folder / "names.json").read_text())
    found = repair(str(folder), base=str(tmp_path / "base")).ordering
    assert all(name in (None, true) for name, true in zip(found.names, live))
    assert found.proven

    for place in (tmp_path / "base", folder):  # a class that is not in the installed release: no model can be rebuilt
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**config, "model_type": "somebodys_mixture", "architectures": ["SomebodysMixture"]}))
    found = repair(str(folder), base=str(tmp_path / "base")).ordering
    wrong = {name for name, true in zip(found.names, live) if name not in (None, true)}
    assert wrong <= set(found.undecided)
    assert not found.proven
    assert "keys under which transformers 5 saved the model" in found.assumed[0]
