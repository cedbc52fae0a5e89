"""Real runs that several tests share; each is trained once a session."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import named_runs, trained
from tests.training import trains

settings.register_profile("ostate", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ostate")  # how long an example takes says how busy the machine is


@pytest.fixture(scope="session")
def llama_run(tmp_path_factory: pytest.TempPathFactory) -> trained.Trained:
    """Llama, 12 layers, LoRA on every linear layer: 168 positions, lexical order would put layers.10 before layers.2."""
    return trained.train(Path(tmp_path_factory.mktemp("llama")), trained.llama, lora={"target_modules": "all-linear"})


@pytest.fixture(scope="session")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> trained.Trained:
    """The same model and settings with another seed: every shape fits, no number does."""
    return trained.train(Path(tmp_path_factory.mktemp("other")), trained.llama, lora={"target_modules": "all-linear"}, seed=1)


@pytest.fixture(scope="session")
def opt_run(tmp_path_factory: pytest.TempPathFactory) -> trained.Trained:
    """OPT, whose attention registers k, v, q, out: neither lexical nor the order that people expect."""
    return trained.train(Path(tmp_path_factory.mktemp("opt")), trained.opt, lora={"target_modules": ["q_proj", "k_proj", "v_proj", "out_proj"]})


@pytest.fixture(scope="session")
def bias_run(tmp_path_factory: pytest.TempPathFactory) -> trained.Trained:
    """OPT with every bias trained: Trainer's second group is not empty."""
    return trained.train(Path(tmp_path_factory.mktemp("bias")), trained.opt, lora={"bias": "all"}, weight_decay=0.1)


@pytest.fixture(scope="session")
def llama_state(llama_run, tmp_path_factory):
    """The Llama run's state under the names of its live optimizer."""
    return named_runs.name_it(llama_run, tmp_path_factory.mktemp("named") / "llama.ostate.safetensors")


@pytest.fixture(scope="session")
def bias_state(bias_run, tmp_path_factory):
    """Two groups, of which the second has no weight decay."""
    return named_runs.name_it(bias_run, tmp_path_factory.mktemp("named") / "bias.ostate.safetensors")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what trains, by itself or through a fixture, so that a package's other tests can be run alone (`-m "not trains and not long"`)."""
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        modules = {item.module.__name__, *(one.func.__module__ for defs in fixtures for one in defs)}
        if any(map(trains, modules)):
            item.add_marker(pytest.mark.trains)


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later collection: Accelerate collects at each end of training, over a heap of torch and transformers."""
    gc.collect()
    gc.freeze()
