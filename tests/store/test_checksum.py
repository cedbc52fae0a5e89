"""`--checksum`: a byte that changed after the save is found while reading, and said where. torch loads it in silence."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch
from click.testing import CliRunner

from ostate.cli import main
from ostate.commands import inspect as inspection
from ostate.commands import repair as program
from ostate.errors import ReadError
from ostate.read.container.zip import ZipIndex
from tests import real

CASE = "long_opt_step60"
READS = {
    "inspect": lambda path: inspection.inspect(path, checksum=True),
    "names": lambda path: program.names(path, checksum=True),
    "verify": lambda path: program.verify(path, checksum=True),
    "repair": lambda path: program.repair(path, checksum=True),
}


@pytest.fixture
def copied(tmp_path):
    """A real checkpoint's state, beside its adapter."""
    case = real.case(CASE)
    state = shutil.copy(case.state, tmp_path / "optimizer.pt")
    shutil.copy(case.adapter, tmp_path / "adapter_model.safetensors")
    config = case.adapter.parent / "adapter_config.json"
    if config.is_file():
        shutil.copy(config, tmp_path)
    return state


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_flipped_bit_of_a_tensor_is_refused_with_its_member(copied, read):
    read(str(copied))
    tensors = [one for one in ZipIndex(str(copied)).members.items() if "/data/" in one[0]]
    name, (offset, size, _) = max(tensors, key=lambda one: one[1][1])
    flip(copied, offset + size // 2)
    torch.load(copied, weights_only=True)  # loads: nothing there looks
    with pytest.raises(ReadError, match="differ from those that were saved") as error:
        read(str(copied))
    assert name in error.value.what
    assert str(copied) in str(error.value)


def test_every_byte_of_every_member_is_covered(copied):
    whole = copied.read_bytes()
    members = ZipIndex(str(copied)).members.values()
    chance = random.Random(0)
    for offset, size, _ in chance.sample([member for member in members if member[1]], 20):
        at = offset + chance.randrange(size)
        copied.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << chance.randrange(8))]) + whole[at + 1 :])
        with pytest.raises(ReadError):
            inspection.inspect(str(copied), checksum=True)


def test_chunks_of_a_distributed_checkpoint_are_compared_one_by_one(tmp_path):
    case = next(case for case in map(real.case, real.names("distributed")) if (case.state / ".metadata").is_file())
    folder = shutil.copytree(case.state, tmp_path / "state")
    (note,) = [f for f in inspection.inspect(str(folder), checksum=True).findings if f.rule == "checksums"]
    assert note.severity == "note"
    file = max(folder.glob("*.distcp"), key=lambda one: one.stat().st_size)
    raw = inspection.open_state(str(folder))
    part = next(p for e in raw.entries for s in e.slots.values() for p in s.parts if p.file == str(file))
    flip(file, part.offset + 1)
    with pytest.raises(ReadError, match="differ from those that were saved") as error:
        inspection.inspect(str(folder), checksum=True)
    assert f"{file.name}: " in error.value.where


def test_a_file_that_records_no_checksums_is_refused_not_passed(copied, tmp_path):
    saved = torch.load(copied, weights_only=True)
    torch.save(saved, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(saved, tmp_path / "without.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    for name in ("legacy.pt", "without.pt"):
        inspection.inspect(str(tmp_path / name))
        with pytest.raises(ReadError, match="no checksums are recorded"):
            inspection.inspect(str(tmp_path / name), checksum=True)


def test_a_named_file_is_held_to_its_own_digests(copied, tmp_path):
    out = tmp_path / "named.safetensors"
    program.repair(str(copied), str(out))
    program.verify(str(out), adapter=str(tmp_path), checksum=True)
    flip(out, out.stat().st_size - 1)
    with pytest.raises(ReadError, match="were changed after writing"):
        program.verify(str(out), adapter=str(tmp_path), checksum=True)


def test_a_comparison_that_passes_is_said(copied, tmp_path):
    out = tmp_path / "named.safetensors"
    for command in (["inspect", str(copied)], ["verify", str(copied)], ["repair", str(copied), "-o", str(out)]):
        done = CliRunner().invoke(main, [*command, "--checksum", "--json"])
        assert done.exit_code in {0, 1}, done.output
        assert "checksums" in {finding["rule"] for finding in json.loads(done.stdout)["findings"]}, command
