"""Folders of torch's HuggingFaceStorageWriter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ostate import read as formats
from ostate.errors import ReadError, UnknownFormat

from .made import check, made


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return made(tmp_path_factory, "make_dcp") / "hugging_face"


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "hf"))


def test_shards_of_two_processes_make_whole_tensors_by_name(folder):
    raw = formats.read(str(folder))
    assert raw.layout == "hfstorage"
    assert raw.recorded == "dcp"
    check(raw, folder, hyper=False)


def test_missing_hyperparameters_are_said_aloud(folder):
    raw = formats.read(str(folder))
    assert [finding.rule for finding in raw.findings] == ["hyperparameters-missing"]
    assert "--betas" in raw.findings[0].fix


@pytest.mark.parametrize("number", [1, 2])
def test_a_missing_shard_is_an_error(copy, number):
    (copy / f"shard-0000{number}-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(ReadError):
        formats.read(str(copy))


def test_a_shard_cut_short_is_named(copy):
    path = copy / "shard-00002-model-00001-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ReadError) as error:
        formats.read(str(copy))
    assert "shard-00002" in error.value.where


def test_one_shard_given_as_a_file_asks_for_the_folder(folder):
    shard = next(folder.glob("*.safetensors"))
    with pytest.raises(UnknownFormat, match="this layout is a folder") as error:
        formats.read(str(shard))
    assert error.value.fix == "pass the folder"
