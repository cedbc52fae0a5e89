"""Digests that are taken while someone reads the numbers find what a reading of their own finds."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from ostate import store
from ostate.checks import judging
from ostate.commands.validate import validate
from ostate.core.stream import PIECE
from ostate.store import digesting

from .made import laid_out, trained


@pytest.fixture(params=[False, True], ids=["crc32", "sha256"])
def written(tmp_path, request):
    return store.write(laid_out(tmp_path, trained()[1]), tmp_path / "out.safetensors", sha256=request.param).path


def slots_of(state):
    return [(name, slot, value) for name, parameter in state.parameters.items() for slot, value in parameter.slots.items()]


def flip(path, ref, byte):
    file, offset = ref.run
    raw = bytearray(Path(file).read_bytes())
    raw[offset + byte] ^= 1
    Path(path).write_bytes(raw)


def test_numbers_come_as_they_are_stored_and_nothing_is_damaged(written):
    state, damaged = digesting.digested(written)
    for (_, _, ours), (_, _, plain) in zip(slots_of(state), slots_of(store.load(written))):
        assert (ours.shape, ours.dtype, ours.encoding) == (plain.shape, plain.dtype, plain.encoding)
        streamed = np.concatenate([chunk.copy() for chunk in ours.chunks(5)])
        assert streamed.tobytes() == plain.read().tobytes() == ours.read().tobytes()
        assert ours.with_shape((plain.numel,)).read().tobytes() == streamed.tobytes()
    assert damaged() == []


@pytest.mark.parametrize("byte", [0, -1])
@pytest.mark.parametrize("reader", ["rules", "nobody", "half"])
def test_a_flipped_bit_is_found_whoever_read_it(written, byte, reader):
    for name, slot, ref in slots_of(store.load(written)):
        flip(written, ref, byte % ref.nbytes)
        state, damaged = digesting.digested(written)
        if reader == "rules":
            with suppress(OverflowError):
                judging.judged(state)
        elif reader == "half":
            for _, _, value in slots_of(state):
                next(value.chunks(2), None)
        assert [(finding.rule, finding.names) for finding in damaged()] == [("digest", (name,))]
        assert slot in damaged()[0].text
        assert [finding.rule for finding in validate(written, deep=True).findings] == ["digest"]
        flip(written, ref, byte % ref.nbytes)
    assert validate(written, deep=True).sound


def test_two_slots_that_are_read_at_once_do_not_share_room(written):
    (_, _, one), (_, _, other) = slots_of(digesting.digested(written)[0])[:2]
    x, y = next(one.chunks()), next(other.chunks())
    assert x.tobytes() == one.source.read().reshape(-1).tobytes()
    assert y.tobytes() == other.source.read().reshape(-1).tobytes()


def test_a_slot_that_is_read_again_keeps_its_first_chunk_apart(tmp_path):
    """The rule on parameters that are copies of one another streams two slots anew, side by side."""
    state, _ = digesting.digested(store.write(laid_out(tmp_path, trained()[1]), tmp_path / "out.safetensors").path)
    first = [value for _, _, value in slots_of(state)][:2]
    for value in first:
        assert sum(chunk.size for chunk in value.chunks(PIECE)) > 0
    x, y = (next(value.chunks(PIECE)) for value in first)
    assert x.tobytes() != y.tobytes()


def test_rules_speak_only_of_bytes_that_are_as_they_were_written(tmp_path):
    """Damage makes a moment NaN: what is said is that the file is damaged, not that the run diverged."""
    path = store.write(laid_out(tmp_path, trained()[1]), tmp_path / "out.safetensors").path
    _, _, ref = slots_of(store.load(path))[1]
    file, offset = ref.run
    raw = bytearray(Path(file).read_bytes())
    raw[offset : offset + 4] = np.float32(np.nan).tobytes()
    Path(path).write_bytes(raw)
    done = validate(path, deep=True)
    assert [finding.rule for finding in done.findings] == ["digest"]
    assert done.state is None
