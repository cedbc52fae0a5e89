"""The tests of PEFT's other methods are exact: beside another layer's moments each rank is uniform, and no wrong name comes out of small runs."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import peft
import pytest
import torch
from scipy.stats import kstest

from ostate.evidence.comparison import Comparison
from ostate.evidence.looks import Place
from tests.evidence import runs
from tests.evidence.method_nets import LAWS, networks, uniformity
from tests.evidence.method_runs import saved_steps
from tests.evidence.small_runs import NEVER, outcomes_of


@pytest.mark.parametrize("method", LAWS)
def test_ranks_beside_another_layers_moments_are_uniform(method):
    for kind, p in uniformity(method, 60, steps=4, seed=3).items():
        assert p > 1e-4, kind


@pytest.mark.parametrize("method", LAWS)
def test_small_runs_yield_no_wrong_name(method):
    found: Counter[str] = Counter()
    for number, run in enumerate(networks(method, 12, layers=5, steps=3, seed=4)):
        found.update(outcomes_of(run, np.random.default_rng(number)))
    assert not set(found) & {f"{asked}: {what}" for what in NEVER for asked in ("own names", "no names")}, found
    assert not any(what in outcome for what in NEVER for outcome in found), found


@pytest.mark.parametrize(
    "config", [lambda on: peft.MissConfig(r=4, **on), lambda on: peft.IA3Config(feedforward_modules=[], **on)], ids=["MISS", "IA3"]
)
def test_ranks_of_queries_without_positions_are_uniform_beside_another_layers_moments_and_first_beside_their_own(config, tmp_path):
    """A real T5 of four and four layers, whose queries and keys have one gauge: queries alone are counted, of layers 0 and 1, 2 and 3."""
    unlike: list[float] = []
    own: list[float] = []
    spread = np.random.default_rng(1)
    for seed in (1, 2):
        net, loss = runs.language_model(t5, seed=seed)
        model = peft.get_peft_model(net, config({"target_modules": ["q", "k", "v"], "task_type": "SEQ_2_SEQ_LM"}))
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        (folder,) = saved_steps(tmp_path / str(seed), model, loss, named, torch.optim.AdamW(list(named.values()), lr=3e-3), [4], seed)
        known = runs.known(folder)
        looks, at = Comparison(known.raw, known.adapter).looks, {key: position for position, key in enumerate(known.keys)}
        for number, unit in enumerate(looks.modules):
            layer = re.search(r"block\.([02])\.layer\.\d\.\w+\.q\.", unit.zero)
            if layer is not None:
                other = unit.zero.replace(f"block.{layer[1]}.", f"block.{int(layer[1]) + 1}.")
                for key, values in ((other, unlike), (unit.zero, own)):
                    (found,) = looks.ranked([Place(number, at[key], None)], "whole")
                    values.extend((each.rank - spread.random()) / each.size for each in found)
    assert len(unlike) == 96
    assert kstest(unlike, "uniform").pvalue > 1e-4
    assert np.median(own) < 0.2


def t5() -> torch.nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    size = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 4, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(vocab_size=96, pad_token_id=0, **size))
