"""The same on a GPU, where there is one."""

from __future__ import annotations

import copy

import pytest
import torch

from ostate.probe import AdamPreconditioner, delta_h1, lora_adamw

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


def test_the_dot_kernel_covers_every_length():
    from ostate.probe.precondition.kernels import triple_dot

    for numel in (1, 7, 1023, 1024, 8191, 8192, 8193, 100_001):
        x, s, g = (torch.randn(numel, device="cuda") for _ in range(3))
        want = float((x.double() * s.double() * g.double()).sum())
        assert float(triple_dot(x, s, g)) == pytest.approx(want, rel=1e-12, abs=1e-12)
        assert float(triple_dot(x.bfloat16(), s.double(), g)) == pytest.approx(
            float((x.bfloat16().double() * s.double() * g.double()).sum()), rel=1e-12, abs=1e-12
        )
