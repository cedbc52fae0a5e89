"""Every rule speaks on a state that breaks it, and no rule speaks on healthy ones."""

from __future__ import annotations

import pytest
import torch

from ostate import checks, store
from ostate import read as formats
from ostate.checks import judging
from ostate.core.naming import Ordering
from ostate.errors import CheckError
from ostate.ordering.join import named_state
from ostate.read import adapters
from ostate.store import validating
from tests import real
from tests.records import replace

from .made import read, state_dict


def each(stored, change):
    for entry in stored["state"].values():
        change(entry)


def found(raw, adapter=None):
    return {finding.rule: finding for finding in [*checks.structure(raw, adapter), *judging.values(raw)[1]]}


def named(raw, names=None):
    names = tuple(names or (f"layers.{i}.weight" if e.has_state else None for i, e in enumerate(raw.entries)))
    return named_state(raw, Ordering(names=names, keys=(None,) * len(names), source="given", verdict="unverified"))


def set_first(slot, value):
    def change(stored):
        stored["state"][0][slot].view(-1)[3] = value

    return change


def swap_moments_of_two(stored):
    state = stored["state"]
    state[0]["exp_avg"], state[2]["exp_avg"] = state[2]["exp_avg"] * 1e4, state[0]["exp_avg"]


def constant(stored):
    each(stored, lambda entry: entry["exp_avg_sq"].fill_(1e-6))


def codes(stored):
    each(stored, lambda entry: entry.update(exp_avg_sq=torch.randint(0, 256, entry["exp_avg_sq"].shape).float()))


def bare_codes(stored):
    each(stored, lambda entry: entry.update(exp_avg_sq=torch.randint(0, 256, entry["exp_avg_sq"].shape, dtype=torch.uint8)))


def holes_in_v(stored):
    each(stored, lambda entry: entry["exp_avg_sq"].view(-1)[:2].zero_())


BREAKS = {
    "values-not-finite": ("error", set_first("exp_avg_sq", float("nan"))),
    "second-moment-is-negative": ("error", set_first("exp_avg_sq", -1e-9)),
    "state-is-cold": ("error", lambda s: each(s, lambda e: (e["exp_avg"].zero_(), e["exp_avg_sq"].zero_(), e["step"].fill_(1)))),
    "parameters-never-moved": ("note", lambda s: (s["state"][1]["exp_avg"].zero_(), s["state"][1]["exp_avg_sq"].zero_())),
    "second-moment-is-a-copy": ("error", lambda s: each(s, lambda e: e.update(exp_avg=e["exp_avg_sq"].clone()))),
    "parameters-are-copies": ("error", lambda s: s["state"][2].update(exp_avg=s["state"][0]["exp_avg"], exp_avg_sq=s["state"][0]["exp_avg_sq"])),
    "second-moment-is-zero-where-the-first-is-not": ("warning", holes_in_v),
    "second-moment-is-below-eps": ("note", lambda s: each(s, lambda e: (e["exp_avg_sq"].mul_(1e-20), e["exp_avg"].mul_(1e-10)))),
    "first-moment-is-out-of-bounds": ("warning", swap_moments_of_two),
    "values-look-like-codes": ("error", codes),
    "moments-are-constant": ("warning", constant),
    "no-state-at-all": ("error", lambda s: s["state"].clear()),
    "parameters-without-a-gradient": ("note", lambda s: s["state"].pop(1)),
    "codes-posing-as-values": ("error", bare_codes),
    "slots-missing": ("warning", lambda s: s["state"][2].pop("exp_avg_sq")),
    "shapes-disagree": ("error", lambda s: s["state"][0].update(exp_avg=s["state"][0]["exp_avg"].T.contiguous())),
    "step-is-missing": ("warning", lambda s: each(s, lambda e: e.pop("step"))),
    "step-is-zero": ("warning", lambda s: each(s, lambda e: e["step"].zero_())),
    "steps-differ": ("note", lambda s: s["state"][3]["step"].fill_(2)),
    "learning-rate-is-zero": ("note", lambda s: s["param_groups"][0].update(lr=0.0, initial_lr=1e-3)),
    "hyperparameters-missing": ("warning", lambda s: s["param_groups"][0].pop("eps")),
    "hyperparameters-out-of-range": ("error", lambda s: s["param_groups"][0].update(betas=(0.9, 1.5))),
    "half-precision-moments": ("warning", lambda s: each(s, lambda e: e.update(exp_avg_sq=e["exp_avg_sq"].bfloat16()))),
}


@pytest.mark.parametrize("rule", BREAKS)
def test_a_state_that_breaks_a_rule_is_told_so(rule, tmp_path):
    severity, change = BREAKS[rule]
    healthy = read(tmp_path, state_dict())
    assert rule not in found(healthy)
    stored = state_dict()
    change(stored)
    seen = found(read(tmp_path, stored))
    assert rule in seen
    assert seen[rule].severity == severity
    assert seen[rule].text
    assert seen[rule].fix or severity == "note"


def test_moments_of_the_same_range_in_another_order_are_no_copy(tmp_path):
    """Few values, as 8-bit codes have: number, zeros and range of the two are the same, the numbers are not."""
    stored = state_dict()
    each(stored, lambda entry: entry["exp_avg_sq"].copy_(torch.rand_like(entry["exp_avg_sq"]).mul(15).round().div(1e6)))
    each(stored, lambda entry: entry.update(exp_avg=entry["exp_avg_sq"].roll(1, 0)))
    assert "second-moment-is-a-copy" not in found(read(tmp_path, stored))
    stored["state"][0]["exp_avg"] = stored["state"][0]["exp_avg_sq"].clone()
    assert "of 1 parameter " in found(read(tmp_path, stored))["second-moment-is-a-copy"].text


def test_every_rule_has_a_case_here_and_says_why_it_exists():
    elsewhere = {
        "optimizer-over-frozen-parameters",
        "optimizer-cannot-be-used",
        "optimizer-not-recognised",
        "quantised-moments",
        "step-against-the-trainer",
        "adapter-does-not-fit",
    }
    assert set(judging.RULES) == set(BREAKS) | elsewhere
    for rule in judging.RULES:
        assert len(judging.explain(rule)) > 60
    assert judging.explain("order-unverified") == ""


def test_the_misuse_of_an_optimizer_over_all_parameters_is_explained(tmp_path):
    case = real.case("all_params_sparse")
    raw = formats.read(str(case.state))
    finding = found(raw, adapters.read_adapter(str(case.adapter)))["optimizer-over-frozen-parameters"]
    assert finding.severity == "warning"
    held = {entry.position for entry in raw.entries if entry.has_state}
    without = sum(1 for position in range(len(held)) if position not in held)
    assert f"{without} of 12 LoRA parameters would have no exp_avg_sq: Adam preconditioning would multiply by 1/eps = 1e8" in finding.text


def test_ids_far_beyond_the_trainable_ones_leave_all_of_them_without_state(tmp_path):
    raw = read(tmp_path, state_dict(frozen=20))
    assert "6 of 6 parameters would have no exp_avg_sq" in found(raw)["optimizer-over-frozen-parameters"].text


def test_once_names_are_settled_the_misuse_is_only_a_note(tmp_path):
    raw = read(tmp_path, state_dict(frozen=20))
    severities = {finding.rule: finding.severity for finding in checks.run(raw, named(raw))}
    assert severities == {"optimizer-over-frozen-parameters": "note"}


def test_steps_that_differ_are_normal_for_experts_and_whole_layers_only(tmp_path):
    stored = state_dict()
    stored["state"][3]["step"].fill_(2)
    raw = read(tmp_path, stored)

    def severity(names):
        (finding,) = [f for f in checks.run(raw, named(raw, names)) if f.rule == "steps-differ"]
        assert names[3] in finding.names
        return finding.severity

    assert severity([f"layers.0.p{i}" for i in range(6)]) == "warning"
    assert severity([f"layers.0.mlp.experts.{i}.w" for i in range(6)]) == "note"
    assert severity([f"layers.{i}.w" for i in range(6)]) == "note"


def test_an_optimizer_started_cold_at_a_resume_is_noticed(tmp_path):
    raw = read(tmp_path, state_dict(steps=6))

    def rule(step):
        known = replace(raw, facts={**raw.facts, "global_step": step})
        return [finding.severity for finding in checks.structure(known) if finding.rule == "step-against-the-trainer"]

    assert rule(6) == []
    assert rule(500) == ["warning"]
    assert rule(3) == ["warning"]
    assert rule(6.2) == ["note"]


@pytest.mark.parametrize("case", ["optim_adamw_bnb_8bit", "optim_adamw_torch_8bit"])
def test_quantised_moments_are_warned_of(case):
    seen = found(formats.read(str(real.case(case).state)))
    assert seen["quantised-moments"].severity == "warning"
    assert {finding.severity for finding in seen.values()} == {"warning", "note"}
    assert "first-moment-is-out-of-bounds" not in seen


def test_an_adapter_of_another_shape_is_noticed(tmp_path):
    raw = formats.read(str(real.case("llama_qv").state))
    assert "adapter-does-not-fit" not in found(raw, adapters.read_adapter(str(real.case("llama_qv").adapter)))
    assert found(raw, adapters.read_adapter(str(real.case("dora_12").adapter)))
    seen = found(raw, adapters.read_adapter(str(real.case("long_opt_step2").adapter)))
    assert seen["adapter-does-not-fit"].severity == "warning"


def test_an_optimizer_that_is_not_known_or_not_usable_is_said_so(tmp_path):
    stored = state_dict()
    each(stored, lambda entry: entry.update(strange=entry.pop("exp_avg"), odd=entry.pop("exp_avg_sq")))
    assert found(read(tmp_path, stored))["optimizer-not-recognised"].severity == "warning"
    stored = state_dict()
    stored["param_groups"][0].update(rank=4, update_proj_gap=200, proj_type="std", scale=1.0)
    for key in ("amsgrad", "foreach", "fused", "capturable", "differentiable", "maximize", "decoupled_weight_decay"):
        stored["param_groups"][0].pop(key)
    assert found(read(tmp_path, stored))["optimizer-cannot-be-used"].severity == "error"


OPTIMIZERS = [
    (torch.optim.AdamW, {}),
    (torch.optim.AdamW, {"amsgrad": True}),
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"weight_decay": 0.1}),
    (torch.optim.AdamW, {"betas": (0.5, 0.6)}),
    (torch.optim.AdamW, {"betas": (0.0, 0.999)}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.Adamax, {}),
    (torch.optim.Adagrad, {}),
    (torch.optim.RMSprop, {}),
    (torch.optim.RMSprop, {"centered": True, "momentum": 0.9}),
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.Adadelta, {}),
    (torch.optim.ASGD, {}),
    (torch.optim.Rprop, {}),
    (torch.optim.Adafactor, {}),
]


@pytest.mark.parametrize("steps", [1, 2, 60])
@pytest.mark.parametrize("make,options", OPTIMIZERS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_healthy_state_of_any_optimizer_gets_no_warning(make, options, steps, tmp_path):
    raw = read(tmp_path, state_dict(steps, make, **options))
    loud = [finding for finding in found(raw).values() if finding.severity != "note"]
    assert loud == []
    assert [finding for finding in checks.run(raw, named(raw)) if finding.severity != "note"] == []


HEALTHY = [
    name
    for kind in ("one-process", "long")
    for name in real.names(kind)
    if name not in {"all_params_sparse", "neg_truncated", "optim_adamw_bnb_8bit", "optim_adamw_torch_8bit"}
]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_real_checkpoint_gets_no_warning(name):
    case = real.case(name)
    raw = formats.read(str(case.state))
    adapter = adapters.read_adapter(str(case.adapter)) if case.adapter else None
    assert [finding for finding in found(raw, adapter).values() if finding.severity != "note"] == []


def test_the_numbers_are_judged_while_they_are_copied(tmp_path):
    stored = state_dict()
    holes_in_v(stored)
    state = named(read(tmp_path, stored))
    written = store.write(state, tmp_path / "out.safetensors", check=judging.while_copying(state))
    assert [finding.rule for finding in written.findings] == ["second-moment-is-zero-where-the-first-is-not"]
    assert store.load(written.path).findings == written.findings
    assert validating.validate(written.path, deep=True) == []


@pytest.mark.parametrize(
    "rule",
    ["values-not-finite", "second-moment-is-negative", "state-is-cold", "second-moment-is-a-copy", "parameters-are-copies", "values-look-like-codes"],
)
def test_numbers_that_make_a_state_unusable_leave_no_output(rule, tmp_path):
    stored = state_dict()
    BREAKS[rule][1](stored)
    state = named(read(tmp_path, stored))
    with pytest.raises(CheckError) as error:
        store.write(state, tmp_path / "out.safetensors", check=judging.while_copying(state))
    assert error.value.fix
    assert sorted(path.name for path in tmp_path.iterdir()) == ["optimizer.pt"]


def test_the_table_of_values_counts_exactly(tmp_path):
    stored = state_dict()
    v = stored["state"][0]["exp_avg_sq"].view(-1)
    v[:3], v[3], v[4], v[5], v[6] = 0.0, float("nan"), float("inf"), -1.0, 1e-20
    table, _ = judging.values(read(tmp_path, stored))
    row = table["exp_avg_sq"]
    assert (row["zero"], row["nan"], row["inf"], row["negative"], row["tiny"]) == (3, 1, 1, 1, 1)
    assert row["elements"] == sum(entry["exp_avg_sq"].numel() for entry in stored["state"].values())
    assert row["smallest"] == -1.0
    everything = torch.cat([entry["exp_avg_sq"].reshape(-1) for entry in stored["state"].values()])
    assert row["largest"] == everything[everything.isfinite()].max().item()
    assert row["mean"] == pytest.approx(everything[everything.isfinite()].double().mean().item())
