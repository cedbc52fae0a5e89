"""The example of the documentation, as people start it: torchrun, two processes, and the delta-H1 of one."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ostate
from ostate.probe import AdamPreconditioner, delta_h1, filled, lora_adamw

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples/fsdp2_probe.py"
SIZES = {"hidden": 32, "layers": 2, "lora_rank": 3}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("fsdp2_probe", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_processes_started_by_torchrun_give_the_delta_h1_of_one(example, tmp_path):
    state = str(tmp_path / "lora.ostate.safetensors")
    options = argparse.Namespace(state=state, make=3, **SIZES)
    example.make(example.build(options, CPU, 1), options, CPU)
    model = example.build(options, CPU, 1)
    optimizer = lora_adamw(model, ostate.load(state), lr=1e-4)
    alone = delta_h1(*example.probe(model, CPU), 1e-4, AdamPreconditioner(optimizer))
    sizes = [word for name, size in SIZES.items() for word in (f"--{name.replace('_', '-')}", str(size))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(EXAMPLE), state, *sizes]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    both = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["rank"] for line in both] == [0, 1]
    assert both[0]["delta_h1"] == both[1]["delta_h1"] == pytest.approx(alone.value, rel=1e-6)
    assert both[0]["verdict"] == both[1]["verdict"] == alone.verdict == "healthy"
    assert both[0]["coverage"] == both[1]["coverage"] == filled(optimizer).coverage == 1.0
    assert sum(line["bytes_read"] for line in both) == filled(optimizer).bytes_read
    assert max(line["bytes_read"] for line in both) < 0.7 * filled(optimizer).bytes_read
