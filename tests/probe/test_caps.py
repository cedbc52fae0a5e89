"""The cap by kind, and what is said of it; many gradients at once."""

from __future__ import annotations

import copy

import jsonschema
import pytest
import torch

from ostate.core.names import kind_of
from ostate.probe import AdamPreconditioner, Guards, delta_h1, lora_adamw
from ostate.probe.measure import protocol
from ostate.probe.measure.protocol import Record
from ostate.report import probe_text
from tests.records import ArraySlot
from tests.schemas import closed, read

from .test_preconditioner import gradients
from .training import batch, edited, trainables

NAMES = {
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": "lora_A",
    "base_model.model.lm_head.lora_B.default.weight": "lora_B",
    "base_model.model.lm_head.modules_to_save.default.weight": "head",
    "base_model.model.score.modules_to_save.default.weight": "head",
    "base_model.model.classifier.modules_to_save.default.dense.weight": "head",
    "base_model.model.model.embed_tokens.modules_to_save.default.weight": "embed",
    "transformer.wte.weight": "embed",
    "gpt_neox.embed_out.weight": "head",
    "base_model.model.model.norm.modules_to_save.default.weight": "norm",
    "transformer.h.0.ln_1.weight": "norm",
    "base_model.model.projector.modules_to_save.default.weight": "modules_to_save",
    "base_model.model.score.modules_to_save.default.bias": "bias",
    "model.layers.0.mlp.up_proj.weight": "other",
    "model.layers.0.multi_head.overhead.weight": "other",
}


@pytest.mark.parametrize("name", NAMES)
def test_each_kind_of_parameter_is_told_by_its_name(name):
    assert kind_of(name, 2) == NAMES[name]


def test_a_head_with_another_scale_leaves_the_adapter_alone(model):
    """A trained head holds most elements, and its gradients are a thousand times larger: it must not set the cap of lora_A."""
    torch.manual_seed(0)
    head = torch.nn.Parameter(torch.zeros(400, 100))
    named = {"base_model.model.lm_head.modules_to_save.default.weight": head, **dict(trainables(model))}
    optimizer = torch.optim.AdamW(list(named.items()), lr=1e-3)
    for parameter in named.values():
        parameter.grad = (torch.rand_like(parameter) + 0.1) * (1.0 if parameter is head else 1e-7)
    optimizer.step()
    pre = AdamPreconditioner(optimizer)
    stats = pre.stats()
    assert (stats["clamped"], pre.findings) == (0, ())
    kinds = stats["by_kind"]
    assert set(kinds) == {"head", "lora_A", "lora_B"}
    assert kinds["lora_A"]["cap"] == pytest.approx(1e3 * kinds["lora_A"]["median_scale"])
    assert kinds["lora_A"]["median_scale"] > 1e5 * kinds["head"]["median_scale"]
    assert stats["cap"] == max(kind["cap"] for kind in kinds.values())
    name, parameter = next(iter(trainables(model)))
    v_hat = optimizer.state[parameter]["exp_avg_sq"].double() / (1 - 0.999)
    torch.testing.assert_close(pre.apply(name, torch.ones_like(parameter)).double(), 1 / (v_hat.sqrt() + 1e-8), rtol=1e-6, atol=0)


def spiked(state, kind: str, share: float):
    """The state with that share of one kind's elements a million times below the rest."""
    for name in state.parameters:
        if kind_of(name) == kind:
            v = state.tensor(name, "exp_avg_sq").copy()
            v.reshape(-1)[: max(int(share * v.size), 1)] *= 1e-12
            state = edited(state, name, slots={"exp_avg_sq": ArraySlot(v)})
    return state


def test_a_kind_that_the_cap_cuts_is_named_though_all_elements_together_are_not_many(run, model, caplog):
    numel = {kind: sum(p.numel() for name, p in trainables(model) if kind_of(name) == kind) for kind in ("lora_A", "lora_B")}
    pre = AdamPreconditioner(spiked(run[2], "lora_B", 0.05), model=model)
    (finding,) = pre.findings
    assert finding.rule == "cap-touches-much"
    assert "of the elements of lora_B" in finding.text
    assert all("lora_B" in name for name in finding.names)
    stats = pre.stats()
    assert stats["by_kind"]["lora_A"]["clamped"] == 0
    assert 0.03 < stats["by_kind"]["lora_B"]["clamped_share"] < 0.06
    assert stats["clamped_share"] == pytest.approx(stats["by_kind"]["lora_B"]["clamped"] / sum(numel.values()))
    assert caplog.text.count("of the elements of lora_B") == 1


def test_healthy_numbers_beside_a_warning_have_their_own_word(run):
    records = [Record(ids=tuple(ids), counted=(True,) * len(ids)) for ids in batch(1)["input_ids"].tolist()]
    reports = [protocol.run(state, copy.deepcopy(run[0]), records, eta=1e-5) for state in (run[2], spiked(run[2], "lora_A", 0.02))]
    assert [report.result.verdict for report in reports] == ["healthy", "healthy, with warnings"]
    assert [report.healthy for report in reports] == [True, False]
    document = reports[1].as_dict()
    jsonschema.validate(document, closed(read("probe-v1")))
    lines = [block.text for block in probe_text.blocks(document) if hasattr(block, "text")]
    assert lines[-1] == "verdict: healthy, with warnings"
    assert any("of the elements of lora_A" in line for line in lines)


def test_shares_of_the_product_that_are_clamped_follow_each_kinds_own_cap(run):
    model = copy.deepcopy(run[0])
    pre = AdamPreconditioner(spiked(run[2], "lora_A", 0.05), model=model)
    x = {name: torch.ones_like(p) if kind_of(name) == "lora_A" else torch.zeros_like(p) for name, p in trainables(model)}
    result = delta_h1(x, x, 1e-5, pre)
    capped = sum(float(pre.scale[0][m.start : m.stop][pre.scale[0][m.start : m.stop] >= row.cap * (1 - 1e-6)].sum())
                 for m, row in zip(pre.layout.members, pre.diagonal.rows) if m.kind == "lora_A")  # fmt: skip
    assert result.shares["clamped"] == pytest.approx(capped / result.bars_dot, rel=1e-6)
    assert capped > 0


@pytest.mark.parametrize("guards", [Guards(), Guards.seed()], ids=["own", "seed"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_dict_a_model_and_one_by_one_are_the_same_to_the_last_bit(run, guards, precision):
    model = copy.deepcopy(run[0])
    pre = AdamPreconditioner(lora_adamw(model, run[2]), guards=guards, precision=precision)
    by_name = gradients(model)
    parameters = dict(trainables(model))
    (flat,) = pre.layout.flatten(by_name)
    want = pre.layout.views([pre.apply_all(flat)])
    got = pre.apply_all(by_name)
    by_parameter = pre.apply_all({parameters[name]: gradient for name, gradient in by_name.items()})
    some = pre.apply_all(dict(list(by_name.items())[3:9]))
    for name, parameter in parameters.items():
        parameter.grad = by_name[name]
        assert torch.equal(got[name], want[name])
        assert torch.equal(by_parameter[parameter], want[name])
        assert torch.equal(pre.apply(name, by_name[name]), want[name])
        assert name not in some or torch.equal(some[name], want[name])
    assert len(some) == 6
    left_out = next(iter(parameters))
    parameters[left_out].grad = None
    of_model = pre.apply_all(model)
    assert set(of_model) == set(parameters) - {left_out}
    assert all(torch.equal(value, want[name]) for name, value in of_model.items())


def test_a_dict_of_wrong_shapes_is_refused_whatever_it_could_be_broadcast_to(run):
    from ostate.errors import ProbeError

    model = copy.deepcopy(run[0])
    pre = AdamPreconditioner(run[2], model=model)
    name = pre.names[0]
    for wrong in (torch.ones(()), torch.ones(1, pre.layout.members[0].shape[1]), torch.ones(2)):
        with pytest.raises(ProbeError, match="the gradient has shape"):
            pre.apply_all({name: wrong})
    with pytest.raises(ProbeError, match="no parameter of this preconditioner has a gradient"):
        pre.apply_all(model)
    with pytest.raises(ProbeError, match="a parameter was given in the gradient's place"):
        pre.apply_all({name: model.get_parameter(name)})


def test_a_refresh_writes_into_the_same_memory_and_a_refused_one_is_refused_again(run):
    from ostate.errors import ProbeError

    model = copy.deepcopy(run[0])
    optimizer = lora_adamw(model, run[2])
    pre = AdamPreconditioner(optimizer, guards=Guards(fallback="raise"))
    where, before = pre.scale[0].data_ptr(), pre.scale[0].clone()
    for entry in optimizer.state.values():
        entry["exp_avg_sq"].mul_(4.0)
    pre.refresh()
    assert pre.scale[0].data_ptr() == where
    assert not torch.equal(pre.scale[0], before)
    next(iter(optimizer.state.values()))["exp_avg_sq"].neg_()
    for _ in range(2):
        with pytest.raises(ProbeError, match="cannot be trusted"):
            pre.refresh()
        with pytest.raises(ProbeError, match="cannot be trusted"):
            pre.apply_all(gradients(model))
