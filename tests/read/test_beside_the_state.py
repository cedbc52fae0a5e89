"""What lies beside a state, below it or in the next folder and is damaged or something else does not keep anybody from the state."""

from __future__ import annotations

import io
import shutil
import zipfile

import numpy as np
import pytest
import torch

from ostate import read as formats
from ostate import repair
from ostate.errors import ReadError
from tests.real import CASES

CHECKPOINT = CASES / "one-process" / "llama_all_linear_12" / "checkpoint-5"
WHOLE = (CHECKPOINT / "optimizer.pt").read_bytes()


def deflated():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"x" * 1000)
    return buffer.getvalue()


def arrays(save):
    buffer = io.BytesIO()
    save(buffer, a=np.ones(5))
    return buffer.getvalue()


def legacy():
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


UNREADABLE = {
    "data.zip": deflated(),
    "x.pt": deflated(),
    "a.npz": arrays(np.savez),
    "b.npz": arrays(np.savez_compressed),
    "cut.pt": WHOLE[:-500],
    "half.bin": WHOLE[: len(WHOLE) // 2],
    "four.pt": b"PK\3\4",
    "empty.pt": b"",
    "old.pt": legacy()[:-5],
    "older.pth": legacy()[:40],
    ".metadata": b"junk",
    "mp_rank_00_model_states.pt": deflated(),
    "optim_rank_0.pt": WHOLE[:700],
    "zero_pp_rank_0_mp_rank_00_optim_states.pt": WHOLE[:900],
    "bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt": WHOLE,
    "model.safetensors": b"junk",
    "latest": b"\xff\xfe\0",
    "trainer_state.json": b"{",
    "optimizer_old.pt": WHOLE[:400],
    "optimizer.npz": arrays(np.savez),
    "optimizer.pt.gz": b"\x1f\x8b\x08" + bytes(50),
}
READABLE = ("empty.pt", "model.safetensors", "latest", "trainer_state.json", ".metadata")
"""Nobody takes these for torch.save's: there is nothing to say of them."""


def folders(tmp_path, name, where):
    """Return (path to give, folder of the unreadable file) with that file in place."""
    checkpoint = tmp_path / "run" / "checkpoint-5"
    shutil.copytree(CHECKPOINT, checkpoint)
    at = {"beside it": checkpoint, "below it": checkpoint / "junk", "in the next folder": tmp_path / "run" / "a"}[where]
    at.mkdir(exist_ok=True)
    (at / name).write_bytes(UNREADABLE[name])
    return (checkpoint if where != "in the next folder" else tmp_path / "run"), at


@pytest.mark.parametrize("where", ["beside it", "below it", "in the next folder"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_it_is_skipped_and_the_state_is_read(tmp_path, name, where):
    path, at = folders(tmp_path, name, where)
    raw = formats.read(str(path))
    assert len(raw.entries) == 168
    said = [finding for finding in raw.findings if finding.rule == "files-skipped"]
    if where == "below it" or name in READABLE or (where != "beside it" and name == "mp_rank_00_model_states.pt"):
        return
    assert len(said) == 1, name
    assert any(one.endswith((name, at.name)) or one == "." for one in said[0].names)
    assert said[0].severity == ("warning" if name.startswith("optimizer") else "note")


def test_repair_reads_on_beside_a_damaged_archive(tmp_path):
    path, at = folders(tmp_path, "cut.pt", "beside it")
    (at / "sub").mkdir()
    (at / "sub" / "adapter_model.bin").write_bytes(WHOLE[:400])
    assert repair(str(path), None).ordering.verdict == "verified"


def test_alone_each_of_them_is_refused_with_its_own_reason(tmp_path):
    for number, (name, content) in enumerate(UNREADABLE.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_bytes(content)
        with pytest.raises(ReadError) as caught:
            formats.read(str(folder))
        if name not in READABLE:
            assert name in caught.value.where, name


@pytest.mark.parametrize("name", ["optimizer.pt", "optimizer.bin", "optimizer_1.bin"])
def test_the_damaged_file_that_a_trainer_resumes_from_is_not_passed_over_for_another(tmp_path, name):
    """Reading `backup.pt` in its place would be a guess that nobody asked for."""
    (tmp_path / "backup.pt").write_bytes(WHOLE)
    (tmp_path / name).write_bytes(WHOLE[:400])
    with pytest.raises(ReadError, match="no archive directory") as caught:
        formats.read(str(tmp_path))
    assert "--state" in caught.value.fix
    assert len(formats.read(str(tmp_path), state="backup.pt").entries) == 168


@pytest.mark.parametrize("content", [b"", b"no checkpoint", WHOLE[:400], bytes(range(256)) * 4])
def test_a_damaged_optimizer_bin_is_listed_beside_the_optimizer_pt_that_trainer_resumes_from(tmp_path, content):
    (tmp_path / "optimizer.pt").write_bytes(WHOLE)
    (tmp_path / "optimizer.bin").write_bytes(content)
    raw = formats.read(str(tmp_path))
    assert len(raw.entries) == 168
    assert [(one.rule, one.severity, one.names) for one in raw.findings if one.rule == "files-skipped"] == [
        ("files-skipped", "warning", ("optimizer.bin",))
    ]
    (tmp_path / "optimizer.bin").write_bytes(WHOLE)
    (tmp_path / "optimizer.pt").write_bytes(content)
    with pytest.raises(ReadError) as caught:
        formats.read(str(tmp_path))
    assert caught.value.where.endswith("optimizer.pt")


def test_a_pickle_that_asks_for_code_beside_the_state_is_skipped_and_alone_refused(tmp_path):
    from tests.attacks import pickles

    (tmp_path / "evil").mkdir()
    evil = pickles.real_reduce(tmp_path / "evil")
    shutil.copy(evil, tmp_path / "other.pt")
    shutil.rmtree(tmp_path / "evil")
    with pytest.raises(ReadError):
        formats.read(str(tmp_path))
    shutil.copy(CHECKPOINT / "optimizer.pt", tmp_path)
    assert len(formats.read(str(tmp_path)).entries) == 168


def test_damaged_adapters_stand_aside_for_a_sound_one_and_are_refused_alone(tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path / "c")
    (tmp_path / "c" / "adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(ReadError, match="not a safetensors file"):
        repair(str(tmp_path / "c"), None)


ZERO = CASES / "distributed" / "ds_z2"
RANK = "zero_pp_rank_{}_mp_rank_{}_optim_states.pt"


def zero(tmp_path, **files):
    """A copy of a checkpoint of two ranks with these files beside theirs; a file's bytes, or nothing for one that is taken away."""
    shutil.copytree(ZERO, tmp_path / "run")
    folder = tmp_path / "run" / "global_step5"
    for name, content in files.items():
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
    return formats.read(str(tmp_path / "run"))


@pytest.mark.parametrize("content", [b"", b"junk", WHOLE[:900], deflated(), WHOLE], ids=["empty", "junk", "cut", "zip", "another state"])
@pytest.mark.parametrize("name", [RANK.format(2, "00"), RANK.format(7, "00"), RANK.format(0, "01"), "zero_pp_rank_0_mp_rank_00_model_states.pt"])
def test_a_file_called_like_a_rank_that_the_run_did_not_have_is_skipped_and_listed(tmp_path, name, content):
    if name.endswith("model_states.pt") and content is WHOLE:
        content = content[:100]
    plain = formats.read(str(ZERO))
    raw = zero(tmp_path, **{name: content})
    assert [entry.name for entry in raw.entries] == [entry.name for entry in plain.entries]
    said = [finding for finding in raw.findings if finding.rule == "files-skipped"]
    assert name.endswith("model_states.pt") or said[0].names == (name,)


@pytest.mark.parametrize("name", [RANK.format(1, "00"), RANK.format(0, "00"), "mp_rank_00_model_states.pt", "bf16_" + RANK.format(1, "00")])
def test_a_file_that_the_run_had_or_may_have_had_is_needed(tmp_path, name):
    with pytest.raises(ReadError) as caught:
        zero(tmp_path, **{name: WHOLE[:900]})
    assert name in caught.value.where


def test_a_rank_beyond_those_that_can_be_read_is_needed_where_they_speak_of_more(tmp_path):
    """Of three ranks the third is damaged, and the first two say so."""
    pytest.importorskip("deepspeed")
    shutil.copytree(ZERO, tmp_path / "run")
    folder = tmp_path / "run" / "global_step5"
    for rank in (0, 1):
        path = folder / RANK.format(rank, "00")
        stored = torch.load(path, weights_only=False)
        stored["optimizer_state_dict"]["partition_count"] = [3]
        torch.save(stored, path)
    (folder / RANK.format(2, "00")).write_bytes(b"junk")
    with pytest.raises(ReadError) as caught:
        formats.read(str(tmp_path / "run"))
    assert RANK.format(2, "00") in caught.value.where
