"""One answer to whether a file is a named state, for `inspect`, for `load` and for whoever is about to replace it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ostate.core import named_file
from ostate.errors import ReadError, StoreError
from ostate.read import named_file as named_path
from ostate.store.loading import find, load

GOLDEN = Path(__file__).parent.parent / "golden" / "0.1.0" / "lora.ostate.safetensors"


def index_of(folder: Path, **files: str) -> str:
    (folder / "x.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return str(folder / "x.safetensors.index.json")


def test_a_file_is_named_by_its_header_alone(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "adapter_model.safetensors", metadata={"note": "not ostate's"})
    shutil.copy(GOLDEN, tmp_path / "any.name")
    assert named_file.is_named(str(tmp_path / "any.name"))
    assert not named_file.is_named(str(tmp_path / "adapter_model.safetensors"))


def test_a_tensor_that_is_called_ostate_makes_no_named_file(tmp_path):
    save_file({"ostate": torch.ones(2)}, tmp_path / "x.safetensors")
    assert not named_file.is_named(str(tmp_path / "x.safetensors"))


def test_an_index_is_named_where_its_first_file_is(tmp_path):
    shutil.copy(GOLDEN, tmp_path / "b.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert named_file.is_named(index_of(tmp_path, one="b.safetensors"))
    assert not named_file.is_named(index_of(tmp_path, one="b.safetensors", other="a.safetensors"))
    assert not named_file.is_named(index_of(tmp_path, one="gone.safetensors"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_what_is_no_index_is_not_named_and_is_refused_where_it_must_be_one(text, tmp_path):
    path = tmp_path / "x.safetensors.index.json"
    path.write_text(text)
    assert not named_file.is_named(str(path))
    with pytest.raises(StoreError, match="the index"):
        load(path)


@pytest.mark.parametrize("name", ["../b.safetensors", "in/b.safetensors", "..", ""])
def test_an_index_does_not_lead_out_of_its_folder(name, tmp_path):
    """One of two readers followed it to a file elsewhere."""
    folder = tmp_path / "here"
    (folder / "in").mkdir(parents=True)
    for place in (tmp_path, folder / "in"):
        shutil.copy(GOLDEN, place / "b.safetensors")
    assert not named_file.is_named(index_of(folder, one=name))
    with pytest.raises(StoreError, match="no named state"):
        find(str(folder))


@pytest.mark.parametrize("kept", [4096, 20_000])
def test_a_named_file_that_is_damaged_is_an_error_and_not_another_file(kept, tmp_path):
    """`load` of a folder saw none there, where `inspect` saw the damage."""
    (tmp_path / "x.safetensors").write_bytes(GOLDEN.read_bytes()[:kept])
    for look in (named_file.is_named, named_path.is_named):
        with pytest.raises(ReadError, match=r"cut short|bytes long"):
            look(str(tmp_path / "x.safetensors"))
    with pytest.raises(ReadError, match=r"cut short|bytes long"):
        find(str(tmp_path))


@pytest.mark.parametrize("size", [0, 1, 8, 9])
def test_a_few_bytes_are_not_named(size, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{"[:size])
    assert not named_file.is_named(str(tmp_path / "x.safetensors"))
