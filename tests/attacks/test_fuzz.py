"""Real files with bytes changed, cut, doubled and swapped: they are read, or refused; nothing else ever comes out."""

from __future__ import annotations

import contextlib
import random
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ostate import read as formats
from ostate.errors import OstateError
from ostate.read.pickle.globals import TORCH_GLOBALS, unpickle
from ostate.read.pickle.torch_tensors import REBUILD
from tests import real
from tests.read.test_torch_file import adamw

ALLOWED = {**TORCH_GLOBALS, **REBUILD}
WORDS = [bytes((code,)) for code in b"\0\xff(RbQut\x85\x86.N}]c\n\x81\x93\x94"] + [b"h\0", b"q\0", b"K\0", b"\xff\xff\xff\x7f"]


def sources() -> dict[str, Path]:
    """Small real files of every kind of index."""
    one, many = real.CASES / "one-process", real.CASES / "distributed"
    return {
        "trainer": one / "llama_qv/checkpoint-5/optimizer.pt",
        "bitsandbytes": one / "optim_adamw_bnb_8bit/checkpoint-5/optimizer.pt",
        "torchao": one / "optim_adamw_torch_8bit/checkpoint-5/optimizer.pt",
        "names": one / "named_trainable/optimizer.pt",
        "lightning": many / "lit_single/last.ckpt",
        "zero": many / "ds_z2/global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    }


def changed(data: bytes, chance: random.Random, folder: tuple[int, int]) -> bytes:
    """Return `data` with a few changes between the positions of `folder`."""
    raw = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(*folder) % max(1, len(raw))
        kind = chance.randrange(6)
        if kind == 0:
            raw[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            raw[at : at + 1] = bytes((chance.randrange(256),))
        elif kind == 2:
            raw[at:at] = chance.choice(WORDS)
        elif kind == 3:
            del raw[at : at + chance.randint(1, 20)]
        elif kind == 4:
            other = chance.randrange(len(raw) or 1)
            raw[at : at + 8] = raw[other : other + 8]
        else:
            word = chance.choice(WORDS)
            raw[at : at + len(word)] = word
    return bytes(raw)


def look(path: Path) -> None:
    """Read the state and its numbers; a refusal is fine."""
    with contextlib.suppress(OstateError):
        raw = formats.read(str(path))
        for entry in raw.entries[:6]:
            for slot in entry.slots.values():
                if sum(slot.shape) < 10_000:
                    slot.read()


def index_of(data: bytes) -> list[tuple[int, int]]:
    """Return where the pickle and the zip's directory lie."""
    start = data.index(b"\x80\x02")
    return [(start, start + min(4000, len(data) - start - 1)), (max(0, len(data) - 6000), len(data)), (0, 200), (0, len(data))]


KINDS = pytest.mark.parametrize("name", [*sources(), "legacy"])
HERE = [HealthCheck.function_scoped_fixture]


@KINDS
@settings(max_examples=25, deadline=None, suppress_health_check=HERE)
@given(seed=st.integers(0, 2**64))
def test_a_changed_file_is_read_or_refused(tmp_path, name, seed):
    change_and_look(tmp_path, name, seed)


@pytest.mark.long
@KINDS
@settings(max_examples=500, deadline=None, suppress_health_check=HERE)
@given(seed=st.integers(0, 2**64))
def test_a_file_changed_in_many_ways_is_read_or_refused(tmp_path, name, seed):
    change_and_look(tmp_path, name, seed)


def change_and_look(tmp_path, name, seed):
    if name == "legacy":
        if not (tmp_path / "sound").exists():
            torch.save(adamw().state_dict(), tmp_path / "sound", _use_new_zipfile_serialization=False)
        data = (tmp_path / "sound").read_bytes()
    else:
        data = sources()[name].read_bytes()
    chance = random.Random(seed)
    raw = changed(data, chance, chance.choice(index_of(data)))
    if chance.random() < 0.2:
        raw = raw[: chance.randrange(len(raw) + 1)]
    (tmp_path / "optimizer.pt").write_bytes(raw)
    look(tmp_path / "optimizer.pt")


def pickle_within(path: Path) -> bytes:
    with zipfile.ZipFile(path) as file:
        return file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**64))
def test_a_changed_pickle_is_read_or_refused(seed):
    chance = random.Random(seed)
    data = pickle_within(chance.choice(list(sources().values())))
    with contextlib.suppress(OstateError):
        unpickle(changed(data, chance, (0, len(data))), where="here", persistent=lambda asked: asked, allowed=ALLOWED)


@settings(max_examples=400, deadline=None)
@given(body=st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=3)), max_size=60))
def test_opcodes_in_any_order_are_read_or_refused(body):
    with contextlib.suppress(OstateError):
        unpickle(b"\x80\x04" + b"".join(body) + b".", where="here", persistent=lambda asked: asked, allowed=ALLOWED)
