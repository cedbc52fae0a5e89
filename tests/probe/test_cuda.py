"""The same on a GPU, where there is one."""

from __future__ import annotations

import copy

import pytest
import torch

from ostate.errors import ProbeError
from ostate.probe import AdamPreconditioner, Guards, delta_h1, lora_adamw
from tests.records import replace

from .test_fill import stepped
from .test_preconditioner import gradients
from .training import trainables

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"capturable": True, "foreach": False}, {"foreach": False}], ids=str)
def test_every_kernel_of_adamw_steps_from_the_filled_state(run, options):
    a, b = copy.deepcopy(run[0]).cuda(), copy.deepcopy(run[0]).cuda()
    want = stepped(a, lora_adamw(a, run[2], foreach=False), "cuda")
    optimizer = lora_adamw(b, run[2], **options)
    step = optimizer.state[trainables(b)[0][1]]["step"]
    assert step.is_cuda == bool(options.get("fused") or options.get("capturable"))
    got = stepped(b, optimizer, "cuda")
    # A step counted on the GPU has its bias correction in float32.
    assert all(torch.allclose(want[name], got[name], rtol=0, atol=5e-7) for name in want)


def test_the_gpu_gives_the_cpus_numbers(run):
    model = copy.deepcopy(run[0])
    x, y = gradients(model, 1), gradients(model, 2)
    here = AdamPreconditioner(run[2], model=model)
    on_gpu = copy.deepcopy(model).cuda()
    there = AdamPreconditioner(lora_adamw(on_gpu, run[2], fused=True))
    move = lambda g: {name: value.cuda() for name, value in g.items()}  # noqa: E731
    a, b = delta_h1(x, y, 1e-5, here), delta_h1(move(x), move(y), 1e-5, there)
    assert b.value == pytest.approx(a.value, rel=1e-6)
    assert there.dot(move(x), move(y)) == pytest.approx(b.bars_dot, rel=1e-12)
    assert there.stats()["median_scale"] == pytest.approx(here.stats()["median_scale"], rel=1e-6)
    assert there.dot(move(x), move(y)) == there.dot(move(x), move(y))


def test_a_state_put_on_cuda_takes_gradients_of_the_current_card(run):
    """`cuda` and `cuda:0` are two devices to torch, and one card."""
    pre = AdamPreconditioner(run[2], device="cuda")
    name = pre.names[0]
    ones = torch.ones(run[2].parameters[name].shape)
    assert pre.layout.buffers[0].device == ones.cuda().device
    assert pre.apply(name, ones.cuda()).device == ones.cuda().device
    with pytest.raises(ProbeError, match="lies on cpu"):
        pre.apply(name, ones)


def test_the_dot_kernel_covers_every_length():
    from ostate.probe.precondition.kernels import triple_dot

    for numel in (1, 7, 1023, 1024, 8191, 8192, 8193, 100_001):
        x, s, g = (torch.randn(numel, device="cuda") for _ in range(3))
        want = float((x.double() * s.double() * g.double()).sum())
        assert float(triple_dot(x, s, g)) == pytest.approx(want, rel=1e-12, abs=1e-12)
        assert float(triple_dot(x.bfloat16(), s.double(), g)) == pytest.approx(
            float((x.bfloat16().double() * s.double() * g.double()).sum()), rel=1e-12, abs=1e-12
        )


def odd_state(count: int, where: str):
    """An optimizer of `count` tensors, every second one of them odd in one of five ways."""
    named = {f"model.layers.{at}.proj.lora_{'AB'[at % 2]}.default.weight": torch.nn.Parameter(torch.zeros(3 + at % 5, 7)) for at in range(count)}
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(list(named.items()), lr=1e-3, foreach=False)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-4
    optimizer.step()
    for at, state in enumerate(optimizer.state.values()):
        v = state["exp_avg_sq"]
        if at % 10 == 1:
            v[0, :3] = 0.0
        elif at % 10 == 3:
            v[1, 2] = float("nan") if at % 20 == 3 else float("inf")
        elif at % 10 == 5:
            v.neg_()
        elif at % 10 == 7:
            v[:, 1] = 1e-40
        elif at % 10 == 9:
            v.zero_()
        if at % 30 == 0:
            v[0, 0] = 1e-25
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            state[key] = value.to(where)
        parameter.data = parameter.data.to(where)
    return optimizer


@pytest.mark.parametrize("guards", [Guards(), Guards.seed(), Guards(fallback="zero", identity_if_coverage_below=0.0)], ids=["own", "seed", "zero"])
@pytest.mark.parametrize("count", [20, 300])
def test_many_odd_parameters_are_counted_and_capped_as_on_a_cpu(count, guards):
    here, there = (AdamPreconditioner(odd_state(count, where), guards=guards) for where in ("cpu", "cuda"))
    assert [replace(row, min_denom=0.0) for row in there.diagonal.rows] == [replace(row, min_denom=0.0) for row in here.diagonal.rows]
    torch.testing.assert_close(there.scale[0].cpu(), here.scale[0], rtol=2e-7, atol=0)
    assert there.findings == here.findings


def test_a_cuda_graph_holds_the_multiply_and_sees_a_later_refresh(run):
    model = copy.deepcopy(run[0]).cuda()
    optimizer = lora_adamw(model, run[2])
    pre = AdamPreconditioner(optimizer)
    given = {name: torch.randn_like(p) for name, p in trainables(model)}
    pre.apply_all(given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = pre.apply_all(given)
    graph.replay()
    assert all(torch.equal(out[name], want) for name, want in pre.apply_all(given).items())
    before = {name: value.clone() for name, value in out.items()}
    stepped(model, optimizer, "cuda")
    pre.refresh()
    graph.replay()
    assert all(torch.equal(out[name], want) for name, want in pre.apply_all(given).items())
    assert not any(torch.equal(out[name], before[name]) for name in before)
    stepped(model, optimizer, "cuda")
    with pytest.raises(ProbeError, match="while a CUDA graph is captured"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        pre.apply_all(given)
