"""The public names as a whole: listed in the docs, explicit in what they take, short in what they show, content with any path."""

from __future__ import annotations

import inspect
import pickle
import re
from dataclasses import fields
from pathlib import Path

import pytest

import ostate
import ostate.errors
import ostate.integrations
import ostate.plot
import ostate.probe
from ostate.commands.options import Options
from ostate.core.brief import MOST, brief

ROOT = Path(__file__).parent.parent
RUN = ROOT / "tests" / "cases" / "long" / "long_opt"
LAST = RUN / "checkpoint-300"
FUNCTIONS = [getattr(ostate, name) for name in ostate.__all__ if inspect.isfunction(getattr(ostate, name))]


def surface():
    """Return every public name, as it is written in a program."""
    errors = {
        f"ostate.errors.{name}" for name, kind in vars(ostate.errors).items() if isinstance(kind, type) and issubclass(kind, ostate.OstateError)
    }
    plot = {
        f"ostate.plot.{name}"
        for name, found in vars(ostate.plot).items()
        if inspect.isfunction(found) and found.__module__ == "ostate.plot" and name[0] != "_"
    }
    return (
        {f"ostate.{name}" for name in ostate.__all__}
        | {f"ostate.probe.{name}" for name in ostate.probe.__all__}
        | {f"ostate.integrations.{name}" for name in ostate.integrations.__all__}
        | errors
        | plot
    )


def test_the_docs_list_each_public_name_and_whether_it_will_stay():
    table = (ROOT / "docs" / "api.md").read_text().partition("## What stays")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (stable|provisional) \|", table, re.MULTILINE)
    listed = [name for names, _ in rows for name in re.findall(r"`([\w.]+)`", names)]
    assert len(listed) == len(set(listed))
    assert set(listed) - {"ostate.probe.compat"} == surface()


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_option_is_a_keyword_of_its_own_with_a_type_and_a_line_in_the_docstring(function):
    for name, parameter in inspect.signature(function).parameters.items():
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY), name
        assert parameter.annotation not in (parameter.empty, "Any", "object"), name
        assert re.search(rf"^\s+{name}: ", function.__doc__ or "", re.MULTILINE) or len(inspect.signature(function).parameters) == 2, name


@pytest.mark.parametrize(("function", "wrong", "right"), [
    (ostate.repair, "adaptor", "adapter"), (ostate.verify, "previos", "previous"), (ostate.names, "bases", "base"),
    (ostate.inspect, "value", "values"), (ostate.export, "vhat", "v_hat"), (ostate.load, "wrapped", "wrap"), (ostate.save, "forced", "force"),
])  # fmt: skip
def test_a_misspelt_option_is_told_the_right_one(function, wrong, right):
    with pytest.raises(TypeError, match=f"has no argument '{wrong}': did you mean '{right}'"):
        function("a", **{wrong: 1})


def test_an_option_like_no_other_is_told_nothing():
    with pytest.raises(TypeError, match=r"^repair\(\) has no argument 'zzz'$"):
        ostate.repair("a", zzz=1)


def test_repair_verify_and_names_take_what_options_holds_by_the_same_defaults():
    held = {field.name: field.default for field in fields(Options)}
    taken = {
        function.__name__: {n: p.default for n, p in inspect.signature(function).parameters.items()}
        for function in (ostate.repair, ostate.verify, ostate.names)
    }
    assert {name: taken["repair"][name] for name in held} == held
    for function in ("verify", "names"):
        assert {name: taken[function][name] for name in held.keys() - {"step", "betas", "eps"}} == {
            name: default for name, default in held.items() if name not in {"step", "betas", "eps"}
        }


def test_each_option_of_repair_arrives(tmp_path):
    """A keyword that was passed on under another's name would be silent."""
    arrived = []
    given = {field.name: f"{field.name}?" for field in fields(Options)} | {"names": "peft", "step": 7, "betas": (0.1, 0.2), "eps": 0.3}
    from ostate.commands import repair as program

    for name in ("repair", "verify", "names"):
        taken = {key: value for key, value in given.items() if key in inspect.signature(getattr(ostate, name)).parameters}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(program, name, lambda *_, options, **__: arrived.append(options))
            getattr(ostate, name)("x", **taken)
        assert {key: getattr(arrived[-1], key) for key in taken} == taken


def test_every_function_takes_any_kind_of_path(tmp_path):
    named, first = tmp_path / "a.ostate.safetensors", tmp_path / "b.ostate.safetensors"
    assert ostate.inspect(LAST, adapter=LAST).fit is not None
    assert ostate.repair(LAST, named, adapter=LAST, previous=RUN / "checkpoint-60").out == (str(named),)
    ostate.repair(RUN / "checkpoint-60", first)
    assert ostate.verify(named, adapter=LAST).proven
    assert ostate.names(LAST, adapter=LAST)[1]
    assert ostate.diff(named, first).a == str(named)
    assert ostate.validate(named) == []
    assert ostate.export(named, "torch", tmp_path / "optimizer.pt", wanted=LAST, adapter=LAST).path == str(tmp_path / "optimizer.pt")
    state = ostate.load(named)
    assert ostate.write(state, tmp_path / "c.ostate.safetensors").path == str(tmp_path / "c.ostate.safetensors")
    assert (tmp_path / "c.ostate.safetensors").read_bytes() == named.read_bytes()


def test_a_state_is_a_container_of_its_parameters():
    state = ostate.load(ROOT / "tests" / "golden" / "0.1.0" / "lora.ostate.safetensors")
    assert len(state) == len(list(state)) == len(state.parameters) > 0
    for name in state:
        assert name in state
        assert state[name] is state.parameters[name]
    assert "nothing" not in state
    with pytest.raises(KeyError, match="nothing"):
        state["nothing"]
    assert state


def shown(tmp_path):
    """Yield what a person at a prompt may look at, of a state of 88 positions."""
    done = ostate.repair(LAST, tmp_path / "a.safetensors")
    state = ostate.load(done.out[0])
    seen = ostate.inspect(LAST, adapter=LAST, values=True)
    yield from (
        done,
        done.ordering,
        done.ordering.evidence,
        *done.ordering.evidence.weakest[:1],
        state,
        state[next(iter(state))],
        seen,
        seen.raw,
        seen.fit,
    )
    yield from (seen.raw.entries[0], seen.raw.groups[0], seen.raw.files[0], *seen.findings, *state.findings)
    yield from state[next(iter(state))].slots.values()
    yield from state.groups
    other = ostate.diff(done.out[0], RUN / "checkpoint-60")
    yield from (other, other.gaps[0], ostate.write(state, tmp_path / "b.safetensors"), ostate.export(state, "torch", None))


def test_what_is_shown_at_a_prompt_is_one_short_line(tmp_path):
    for value in shown(tmp_path):
        text = repr(value)
        assert len(text) <= MOST == 200, text
        assert text.startswith(type(value).__name__ + "(")
        assert "\n" not in text


def test_the_probe_s_values_are_one_short_line_too(llama_run, tmp_path):
    import torch

    state = ostate.repair(llama_run.checkpoint, adapter=llama_run.checkpoint).named
    model = llama_run.fresh()
    optimizer = ostate.probe.lora_adamw(model, state)
    pre = ostate.probe.AdamPreconditioner(optimizer)
    gradients = {name: torch.ones_like(p) for name, p in model.named_parameters() if p.requires_grad}
    weights = ostate.probe.importance_weights(torch.zeros(1000), torch.zeros(1000), top_p=1.0, top_k=None, temperature=1.0)
    for value in (ostate.probe.filled(optimizer), pre, ostate.probe.Guards(), ostate.probe.delta_h1(gradients, gradients, 1e-5, pre), weights):
        assert len(repr(value)) <= 200, repr(value)


@pytest.mark.parametrize(
    "field", [10**5000, "x" * 10_000, list(range(10_000)), ("a" * 500, "b"), 2.5, True, None, {}], ids=lambda field: type(field).__name__
)
def test_no_field_makes_it_long(field):
    from typing import NamedTuple

    class One(NamedTuple):
        what: object
        name: str = "layers.0.q_proj"

    assert len(brief(One(field))) <= 200
    assert "layers.0.q_proj" in brief(One(field))


@pytest.mark.parametrize(
    "kind", sorted({kind for kind in vars(ostate.errors).values() if isinstance(kind, type) and issubclass(kind, ostate.OstateError)}, key=repr)
)
def test_a_refusal_keeps_its_words_on_the_way_from_another_process(kind):
    error = pickle.loads(pickle.dumps(kind("what", where="where", fix="fix").at("outer")))
    assert type(error) is kind
    assert str(error).splitlines() == ["what", "  at:  outer: where", "  fix: fix"]
