"""What the pictures show, against the numbers themselves."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ostate.core.naming import NamedParameter, NamedState
from ostate.core.state import Group
from ostate.core.tensors import TensorRef
from ostate.report import figures
from ostate.report.numbers import BIN, SCALE_FROM, measure, median
from ostate.report.parts import places
from ostate.store.header import read as read_header
from tests.records import replace
from tests.report.states import real

BIN_ERROR = BIN / 2 + 1e-6


def stored(path, tensors):
    """Write tensors as safetensors and return a TensorRef a name."""
    from safetensors.numpy import save_file

    save_file(tensors, path)
    head = read_header(str(path))
    return {name: head.tensors[name] for name in tensors}


def state_of(path, slots, *, step=10.0, optimizer="adamw", **hyper):
    refs: dict[str, TensorRef] = stored(path, slots)
    shape = next(iter(slots.values())).shape
    parameter = NamedParameter(name="layers.0.q_proj.lora_A.weight", shape=shape, group=0, slots=refs, step=step)
    group = Group(index=0, positions=(0,), hyper={"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, **hyper}, names=(parameter.name,))
    return NamedState(optimizer=optimizer, optimizer_class=optimizer, groups=(group,), parameters={parameter.name: parameter})


def true_scale(v, step=10.0, beta2=0.999, eps=1e-8):
    return 1 / (np.sqrt(v.astype(np.float64) / (1 - beta2**step)) + eps)


@pytest.mark.parametrize("name", ["long_opt_step2", "long_opt_step300"])
def test_a_real_state_is_measured_as_numpy_measures_it(name):
    *_, state = real(name)
    numbers = measure(state)
    assert numbers.elements == sum(np.prod(parameter.shape) for parameter in state.parameters.values())
    for one in numbers.parameters:
        parameter, hyper = state.parameters[one.name], state.hyper(one.name)
        m, v = (parameter.slots[slot].read().astype(np.float64) for slot in ("exp_avg", "exp_avg_sq"))
        scale = true_scale(v, parameter.step, hyper["betas"][1], hyper["eps"])
        update = m / (1 - hyper["betas"][0] ** parameter.step) * scale
        assert one.step == parameter.step
        assert one.update == pytest.approx(np.sqrt(np.mean(update**2)), rel=1e-9)
        assert median(one.scale, SCALE_FROM) == pytest.approx(np.median(np.log10(scale[v > 0])), abs=2 * BIN)
        assert one.scale.sum() + one.zeros + one.bad == one.elements
    assert set(numbers.caps) == {"lora_A", "lora_B"}
    for kind, cap in numbers.caps.items():
        every = [true_scale(p.slots["exp_avg_sq"].read().reshape(-1), p.step) for n, p in state.parameters.items() if f".{kind}." in n]
        assert cap == pytest.approx(np.log10(np.median(np.concatenate(every))) + 3, abs=2 * BIN)


def test_zero_bad_and_eps_dominated_elements_are_counted_apart(tmp_path):
    v = np.array([0.0, 0.0, -1e-9, np.nan, np.inf, 1e-20, 1e-6, 1e-6], np.float32)
    m = np.full(8, 1e-4, np.float32)
    (one,) = measure(state_of(tmp_path / "a.safetensors", {"exp_avg": m, "exp_avg_sq": v})).parameters
    assert (one.zeros, one.bad, one.eps_dominated, one.scale.sum()) == (2, 3, 1, 3)


def test_an_element_that_never_had_a_gradient_does_not_move(tmp_path):
    zero = np.zeros(4, np.float32)
    (one,) = measure(state_of(tmp_path / "a.safetensors", {"exp_avg": zero, "exp_avg_sq": zero}, eps=0.0)).parameters
    assert one.update == 0.0
    assert one.scale.sum() == 0


def test_the_clamp_is_a_thousand_times_the_median(tmp_path):
    v = np.full(1000, 1e-4, np.float32)
    v[:7] = 1e-14
    numbers = measure(state_of(tmp_path / "a.safetensors", {"exp_avg": v, "exp_avg_sq": v}, eps=1e-12))
    assert numbers.clamped(numbers.parameters[0]) == 7


def test_the_picture_of_scales_names_each_kinds_clamp_and_draws_a_line_only_where_there_is_one():
    *_, state = real("long_opt_step300")
    both = figures.scale_ridges(measure(state))
    assert both.mark is None
    assert re.search(r"clamps above \d+\.\d \(lora_[AB]\), \d+\.\d \(lora_[AB]\): 1000 times the median of the kind", both.says)
    one = figures.scale_ridges(measure(replace(state, parameters={name: p for name, p in state.parameters.items() if ".lora_A." in name})))
    assert one.mark == pytest.approx(float(re.search(r"clamps above (\d+\.\d):", one.says)[1]), abs=0.051)


def test_a_state_that_does_not_say_its_step_has_no_scale_and_says_why(tmp_path):
    v = np.full(4, 1e-4, np.float32)
    numbers = measure(state_of(tmp_path / "a.safetensors", {"exp_avg": v, "exp_avg_sq": v}, step=None))
    assert "steps" in numbers.parameters[0].why_not
    assert numbers.caps == {}
    assert numbers.parameters[0].update is None


def test_an_optimizer_without_second_moment_says_so(tmp_path):
    numbers = measure(state_of(tmp_path / "a.safetensors", {"exp_avg": np.ones(4, np.float32)}, optimizer="lion"))
    assert "second moment" in numbers.parameters[0].why_not


def test_a_long_parameter_is_read_in_pieces_to_the_same_numbers(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    v = (10 ** random.uniform(-14, -4, (100, 50))).astype(np.float32)
    m = random.standard_normal((100, 50)).astype(np.float32) * 1e-5
    state = state_of(tmp_path / "a.safetensors", {"exp_avg": m, "exp_avg_sq": v})
    whole = measure(state).parameters[0]
    monkeypatch.setattr("ostate.report.numbers._MOST", 777)
    cut = measure(state).parameters[0]
    assert cut.update == pytest.approx(whole.update, rel=1e-12)
    assert (cut.v == whole.v).all()
    assert (cut.scale == whole.scale).all()


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("base_model.model.model.layers.7.self_attn.q_proj.lora_A.default.weight", "7", "q_proj.lora_A"),
        ("base_model.model.transformer.h.0.attn.c_attn.lora_B.default.weight", "0", "c_attn.lora_B"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "-", "lm_head.modules_to_save"),
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_magnitude_vector.default.weight", "3", "q_proj.lora_magnitude_vector"),
        ("base_model.model.model.layers.3.self_attn.q_proj.lora_B.default.bias", "3", "q_proj.lora_B.bias"),
        ("model.layers.11.mlp.experts.5.w1.weight", "11", "w1.weight"),
        ("model.layers.11.input_layernorm.weight", "11", "input_layernorm.weight"),
        ("weight", "-", "weight"),
    ],
)
def test_a_name_tells_layer_and_kind(name, layer, kind):
    place = places([name])[name]
    assert (place.layer, place.kind) == (layer, kind)


def test_two_stacks_are_told_apart():
    names = [f"base_model.model.{stack}.block.{layer}.layer.0.q.lora_A.weight" for stack in ("encoder", "decoder") for layer in (0, 10, 2)]
    found = places(names)
    assert [found[name].layer for name in names] == ["encoder 0", "encoder 10", "encoder 2", "decoder 0", "decoder 10", "decoder 2"]
    ordered = sorted(found.values(), key=lambda place: place.order)
    assert [place.layer for place in ordered][:3] == ["decoder 0", "decoder 2", "decoder 10"]


def test_the_update_of_several_parameters_is_their_common_mean_square():
    *_, state = real("long_opt_step60")
    numbers = measure(state)
    heat = figures.update_size(numbers)
    row, column = heat.rows.index("3"), heat.columns.index("q_proj.lora_B")
    (one,) = [one for one in numbers.parameters if one.place.layer == "3" and one.place.kind == "q_proj.lora_B"]
    assert heat.values[row][column] == pytest.approx(one.update)
    assert len(heat.rows) == 11
    assert len(heat.columns) == 8


def test_change_is_last_less_first_whatever_the_order_given():
    states = [measure(real(name)[3]) for name in ("long_opt_step300", "long_opt_step2", "long_opt_step60")]
    scale, update, moved = figures.changes(states)
    assert scale.x == update.x == (2.0, 60.0, 300.0)
    first, last = figures.v_heat(states[1]), figures.v_heat(states[0])
    assert moved.values[4][2] == pytest.approx(last.values[4][2] - first.values[4][2])


def test_layers_share_out_their_elements():
    *_, state = real("long_opt_step60")
    rows = figures.layers(measure(state))
    assert [row.layer for row in rows] == [str(i) for i in range(11)]
    assert sum(row.elements for row in rows) == 67584
    assert {row.step for row in rows} == {"60"}
    assert all(row.coverage == 1.0 and row.bad == 0.0 for row in rows)
