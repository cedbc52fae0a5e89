"""One parameter's moments written over another's: no command that judges names may overlook it, whether it copies numbers or not."""

from __future__ import annotations

import shutil

import peft
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


def test_scales_of_queries_and_keys_have_one_gradient_and_are_no_copies_where_few_bits_are_kept(tmp_path):
    """T5's scores are a product of both, without positions between them: IA3's two scales move alike, and moments of few bits are the same."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    size = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 96, "decoder_start_token_id": 0}
    net = T5ForConditionalGeneration(T5Config(**size))
    model = peft.get_peft_model(net, peft.IA3Config(target_modules=["q", "k"], feedforward_modules=[], task_type="SEQ_2_SEQ_LM"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    ids = torch.randint(1, 96, (4, 8))
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    stored = optimizer.state_dict()
    for entry in stored["state"].values():
        entry.update({slot: entry[slot].to(torch.bfloat16) for slot in BOTH})
    torch.save(stored, tmp_path / "optimizer.pt")
    entries = stored["state"].values()
    assert len({tuple(entry["exp_avg"].flatten().tolist()) for entry in entries}) < len(entries)  # some are the same
    assert copied.copies(formats.read(str(tmp_path / "optimizer.pt"))) == []
    for entry, exact in zip(entries, optimizer.state_dict()["state"].values()):
        entry.update({slot: exact[slot].float() for slot in BOTH})
    first = next(iter(entries))
    list(entries)[1].update({slot: first[slot].clone() for slot in BOTH})
    torch.save(stored, tmp_path / "optimizer.pt")
    assert len(copied.copies(formats.read(str(tmp_path / "optimizer.pt")))) == 1  # in float32 rounding tells them apart
