"""One parameter's moments written over another's: no command that judges names may overlook it, whether it copies numbers or not."""

from __future__ import annotations

import shutil

import pytest
import torch

from ostate import read as formats
from ostate.checks import copied
from ostate.commands import repair as program
from ostate.errors import CheckError
from tests import real

JUDGE = {
    "verify": lambda path, **more: program.verify(path, **more),
    "names": lambda path, **more: program.names(path, **more),
    "repair --dry-run": lambda path, **more: program.repair(path, **more),
}
BOTH = ("exp_avg", "exp_avg_sq")


@pytest.fixture
def checkpoint(tmp_path):
    """A real checkpoint's folder, and its state as torch loads it."""
    case = real.case("long_opt_step60")
    state = shutil.copy(case.state, tmp_path / "optimizer.pt")
    shutil.copy(case.adapter, tmp_path / "adapter_model.safetensors")
    return state, torch.load(state, weights_only=True)


def two_of_one_shape(stored):
    shapes = [tuple(entry["exp_avg"].shape) for entry in stored["state"].values()]
    first = next(at for at, shape in enumerate(shapes) if shapes.count(shape) > 1)
    return stored["state"][first], stored["state"][shapes.index(shapes[first], first + 1)]


@pytest.mark.parametrize("zipped", [True, False], ids=["with checksums", "without"])
@pytest.mark.parametrize("judge", JUDGE.values(), ids=JUDGE)
def test_moments_that_stand_twice_are_refused_by_whoever_judges_names(checkpoint, judge, zipped):
    path, stored = checkpoint
    judge(str(path))
    here, there = two_of_one_shape(stored)
    there.update({slot: here[slot].clone() for slot in BOTH})
    torch.save(stored, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckError, match="moments of 1 parameter are those of another one, bit for bit"):
        judge(str(path))


def test_two_entries_that_share_one_storage_are_seen_too(checkpoint):
    path, stored = checkpoint
    here, there = two_of_one_shape(stored)
    there.update({slot: here[slot] for slot in BOTH})
    torch.save(stored, path)
    with pytest.raises(CheckError, match="bit for bit"):
        program.verify(str(path))


@pytest.mark.parametrize("zipped", [True, False], ids=["with checksums", "without"])
def test_what_only_looks_like_a_copy_is_none(checkpoint, zipped):
    """The same second moment alone, one number of difference, or moments that are zero everywhere as after a first step."""
    path, stored = checkpoint
    here, there = two_of_one_shape(stored)
    almost = here["exp_avg"].clone()
    almost.view(-1)[-1] += 1e-6
    for change in ({"exp_avg_sq": here["exp_avg_sq"].clone()}, {"exp_avg": almost, "exp_avg_sq": here["exp_avg_sq"].clone()}):
        kept = dict(there)
        there.update(change)
        torch.save(stored, path, _use_new_zipfile_serialization=zipped)
        assert copied.copies(formats.read(str(path))) == []
        there.update(kept)
    for entry in (here, there):
        entry.update({slot: torch.zeros_like(entry[slot]) for slot in BOTH})
    torch.save(stored, path, _use_new_zipfile_serialization=zipped)
    assert copied.copies(formats.read(str(path))) == []


def test_numbers_left_out_on_request_are_not_read_for_this_either(checkpoint):
    path, stored = checkpoint
    here, there = two_of_one_shape(stored)
    there.update({slot: here[slot].clone() for slot in BOTH})
    torch.save(stored, path)
    order = path.parent / "order.txt"
    order.write_text("\n".join(row["name"] for row in real.case("long_opt_step60").truth))
    assert program.verify(str(path), order=str(order), evidence=False).verdict == "unverified"
