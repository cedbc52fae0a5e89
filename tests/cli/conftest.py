"""What several files of command tests start from."""

from __future__ import annotations

import shutil

import pytest

from tests.real import case


@pytest.fixture
def cached_llama(tmp_path, monkeypatch):
    """A base model in a Hugging Face cache of its own, as `huggingface_hub` lays it out; returns its org/name."""
    place = tmp_path / "hub" / "models--tiny--llama"
    shutil.copytree(case("llama_qv").base, place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return "tiny/llama"
