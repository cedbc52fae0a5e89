"""Real runs that several tests share; each is trained once a session."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

from tests import trained


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
