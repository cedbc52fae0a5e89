"""A base model's configuration may be anybody's file too: whatever it asks for, the model is not rebuilt, soon and in little memory."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import tracemalloc

import pytest

from ostate.commands import repair as program
from ostate.errors import OrderingError
from ostate.ordering.grouping.parameters import ParameterList
from ostate.ordering.sources.rebuilt import build, limits
from ostate.ordering.sources.rebuilt.listed import NotBuilt, Request
from ostate.read import adapters
from tests import real
from tests.records import replace

skeleton = importlib.import_module("ostate.ordering.sources.rebuilt.model")  # the package gives the function of that name
CASE = "llama_qv"
ENDLESS = "(([a-z_.0-9]+)+)+!"
"""Matched against a name of forty letters, this takes longer than the universe."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The adapter, and its base model's configuration."""
    case = real.case(CASE)
    adapter, config = adapters.read_adapter(str(case.adapter)), json.loads((case.base / "config.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        assert isinstance(skeleton.layout_for([adapter], config), ParameterList)  # and everything is imported
    return adapter, config


@pytest.fixture(autouse=True)
def _strict(sound, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(limits, "MOST_SECONDS", 10.0)
    monkeypatch.setattr(limits, "MOST_PARAMETERS", 2000)


BASES = {
    "a layer for every grain of sand": ({"num_hidden_layers": 10**18}, "num_hidden_layers is 1e+18"),
    "more layers than digits": ({"num_hidden_layers": 10**400}, "num_hidden_layers is a number of 1329 bits"),
    "a hundred million experts, inside": ({"text_config": {"moe": [{"num_experts": 10**8}]}}, "num_experts is 1e+08"),
    "ten thousand layers": ({"num_hidden_layers": 10_000}, "num_hidden_layers is 1e+04"),
    "ten thousand layers of an encoder": ({"text_config": {"encoder_layers": 10_000}}, "encoder_layers is 1e+04"),
    "as many layers as are let through": ({"num_hidden_layers": 1000}, "more than 2000 parameters"),
    "a width that no memory holds": ({"hidden_size": 1 << 62, "intermediate_size": 1 << 62}, "cannot be rebuilt"),
    "no heads": ({"num_attention_heads": 0}, "ZeroDivisionError"),
    "a negative width": ({"hidden_size": -16}, "cannot be rebuilt"),
    "a size that is text": ({"vocab_size": "a lot"}, "cannot be rebuilt"),
    "a model nobody knows": ({"model_type": "../../evil"}, "does not know the model type"),
    "a model type that is a list": ({"model_type": ["llama"]}, "cannot be rebuilt"),
    "no model type": ({"model_type": None}, "does not know the model type"),
}


def test_what_real_models_have_is_not_taken_for_too_much():
    real = {
        "num_hidden_layers": 160,
        "n_layer": 96,
        "depths": [3, 3, 27, 3],
        "block_size": 131_072,
        "num_experts": 384,
        "layers_block_type": ["a"] * 200,
    }
    assert limits.absurd({"text_config": [real], "max_position_embeddings": 10_485_760, "hidden_size": 53_248}) == ""


@pytest.mark.parametrize(("change", "reason"), BASES.values(), ids=BASES)
def test_a_model_that_cannot_be_is_a_reason(sound, change, reason):
    adapter, config = sound
    tracemalloc.start()
    said = skeleton.layout_for([adapter], {**config, **change})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(said, str)
    assert reason in said
    assert peak < 200 << 20


TARGETS = {
    "a pattern without end": ({"target_modules": ENDLESS}, "it takes more than 1 s"),
    "a pattern without end for ranks": ({"rank_pattern": {ENDLESS: 8}}, "it takes more than 1 s"),
    "a pattern that is none": ({"target_modules": "((("}, "cannot be rebuilt"),
    "a method nobody knows": ({"peft_type": "../../evil"}, "cannot be rebuilt"),
    "a rank of 10^18": ({"r": 10**18}, "cannot be rebuilt"),
}


@pytest.mark.parametrize(("change", "reason"), TARGETS.values(), ids=TARGETS)
def test_an_adapter_that_cannot_be_is_a_reason(sound, change, reason, monkeypatch):
    adapter, config = sound
    monkeypatch.setattr(limits, "MOST_SECONDS", 1.0)
    said = skeleton.layout_for([replace(adapter, config={**adapter.config, **change})], config)
    assert isinstance(said, str)
    assert reason in said


def test_the_clock_is_put_back(sound, monkeypatch):
    adapter, config = sound
    monkeypatch.setattr(limits, "MOST_SECONDS", 1.0)
    mine = signal.signal(signal.SIGVTALRM, signal.SIG_IGN)
    try:
        skeleton.layout_for([replace(adapter, config={**adapter.config, "target_modules": ENDLESS})], config)
        assert signal.getsignal(signal.SIGVTALRM) is signal.SIG_IGN
        assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
    finally:
        signal.signal(signal.SIGVTALRM, mine)


@pytest.mark.parametrize("name", ["Trainer", "TrainingArguments", "pipeline", "logging", "AutoTokenizer", "LlamaConfig"])
def test_nothing_but_a_model_is_made_of_a_configuration(sound, name, tmp_path, monkeypatch):
    adapter, config = sound
    monkeypatch.chdir(tmp_path)
    answer = build.build(Request(name, config, (("default", dict(adapter.config)),), "default"))
    assert isinstance(answer, NotBuilt)
    assert "is not a model" in answer.reason
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_code_beside_a_configuration_stays_where_it_is(tmp_path, sound, monkeypatch):
    case = real.case(CASE)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(case.adapter.parent / file, tmp_path)
    shutil.copy(case.state, tmp_path / "optimizer.pt")
    base = tmp_path / "base"
    base.mkdir()
    (base / "evil.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\nclass Model: pass\nclass Config: pass\n")
    mapping = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForCausalLM": "evil.Model"}
    kernels = {"attn_implementation": "evil/kernels", "_attn_implementation": "evil/kernels", "use_pretrained_backbone": True}
    change = {"auto_map": mapping, "trust_remote_code": True, **kernels}
    (base / "config.json").write_text(json.dumps({**sound[1], **change}))
    monkeypatch.setattr(limits, "MOST_PARAMETERS", 300_000)
    assert program.verify(str(tmp_path / "optimizer.pt"), base=str(base)).source == "skeleton"
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "text",
    ['{"a":' * 500_000 + "1" + "}" * 500_000, '{"a":[' + "[]," * 3_000_000 + "1]}", '{"num_hidden_layers":' + "9" * 100_000 + "}", "[]", ""],
    ids=["nested without end", "nothing but brackets", "a number of a hundred thousand digits", "a list", "empty"],
)
def test_a_base_that_is_no_configuration_is_refused(tmp_path, text):
    case = real.case(CASE)
    (tmp_path / "config.json").write_text(text)
    tracemalloc.start()
    with pytest.raises(OrderingError, match="no model configuration found"):
        program.verify(str(case.state), adapter=str(case.adapter), base=str(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20


def test_a_base_that_is_a_pipe_is_not_waited_for(tmp_path):
    case = real.case(CASE)
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(OrderingError, match="no model configuration found"):
        program.verify(str(case.state), adapter=str(case.adapter), base=str(tmp_path))
