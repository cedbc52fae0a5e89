"""No flipped byte, no swapped piece and no other file passes for what was written."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from ostate import store
from ostate.commands import repair as program
from ostate.errors import OstateError, ReadError, StoreError
from ostate.store import header, validating
from tests import real


@pytest.fixture
def written(state, tmp_path):
    out = tmp_path / "out.safetensors"
    store.write(state, out)
    return out


def errors(path, deep=True):
    return [finding for finding in validating.validate(path, deep=deep) if finding.severity == "error"]


def test_an_untouched_file_is_sound(written):
    assert validating.validate(written) == []
    assert validating.validate(written, deep=True) == []


def test_every_flipped_byte_is_found(written):
    """Every byte of the whole file, header and tensors, each with one wrong bit and once wholly inverted."""
    whole = written.read_bytes()
    rng = random.Random(0)
    missed = []
    with written.open("r+b", buffering=0) as file:
        for at, byte in enumerate(whole):
            other = byte ^ (1 << rng.randrange(8)) if at % 2 else byte ^ 0xFF
            file.seek(at)
            file.write(bytes([other]))
            if not errors(written):
                missed.append(at)
            file.seek(at)
            file.write(bytes([byte]))
    assert missed == []
    assert len(whole) > 8192


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_flipped_byte_is_found_anywhere_in_a_real_repair(tmp_path):
    """All of the header, and 10,000 random others, of a file that was repaired from a real checkpoint."""
    case = real.case("named_trainable")
    named = tmp_path / "named.safetensors"
    program.repair(str(case.state), str(named), adapter=str(case.adapter))
    whole = named.read_bytes()
    data = header.read(str(named)).data_start
    rng = random.Random(0)
    places = [*range(data), *(rng.randrange(data, len(whole)) for _ in range(10_000))]
    missed = []
    with named.open("r+b", buffering=0) as file:
        for at in places:
            file.seek(at)
            file.write(bytes([whole[at] ^ (1 << rng.randrange(8))]))
            if not errors(named):
                missed.append(at)
            file.seek(at)
            file.write(whole[at : at + 1])
    assert missed == []
    assert len(places) > 20_000


def test_whitespace_for_whitespace_is_found(written):
    """JSON would not mind a tab in the padding; the header's digest does."""
    whole = bytearray(written.read_bytes())
    end = 8 + int.from_bytes(whole[:8], "little") - 1
    assert whole[end] == 0x20
    whole[end] = 0x09
    written.write_bytes(whole)
    assert [finding.rule for finding in errors(written)] == ["header-digest"]


def test_a_flipped_byte_in_the_index_or_a_shard_is_found(state, tmp_path):
    result = store.write(state, tmp_path / "out.safetensors", max_shard_bytes=700)
    rng = random.Random(1)
    for path in map(Path, result.files):
        whole = path.read_bytes()
        for at in rng.sample(range(len(whole)), 60):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            with suppress(StoreError, ReadError):
                assert errors(result.path), (path, at)
        path.write_bytes(whole)
    assert validating.validate(result.path, deep=True) == []


def test_a_shard_whose_manifest_lacks_its_groups_is_said_to_break_the_schema(state, tmp_path):
    result = store.write(state, tmp_path / "out.safetensors", max_shard_bytes=700)
    shard = Path(result.files[0])
    shard.write_bytes(shard.read_bytes().replace(rb"\"groups\"", rb"\"graups\"", 1))
    assert {finding.rule for finding in errors(result.path)} == {"header-digest", "schema"}


def test_a_shard_of_another_state_is_found(state, tmp_path):
    from tests.records import replace

    result = store.write(state, tmp_path / "a.safetensors", max_shard_bytes=700)
    other = store.write(replace(state, optimizer_class="other.AdamW"), tmp_path / "b.safetensors", max_shard_bytes=700)
    shutil.copy(other.files[0], result.files[0])
    assert "the files are parts of different states" in [finding.text for finding in errors(result.path)]


def test_the_index_cannot_lead_out_of_its_folder(state, tmp_path):
    result = store.write(state, tmp_path / "a.safetensors", max_shard_bytes=700)
    index = json.loads(Path(result.path).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../../etc/passwd")
    Path(result.path).write_text(json.dumps(index))
    with pytest.raises(StoreError, match="leads out of its own folder"):
        store.load(result.path)


def edited(path, change):
    """Rewrite the file with a changed manifest and an honest header digest: what a wrong program would write."""
    head = header.read(str(path))
    rows = json.loads(head.metadata["ostate"])
    change(rows)
    data = path.read_bytes()[head.data_start :]
    tensors = [header.Tensor(key, ref.dtype, ref.shape, ref.parts[0].offset - head.data_start) for key, ref in head.tensors.items()]
    path.write_bytes(header.pack(tensors, json.dumps(rows)) + data)


def first(rows):
    return next(iter(rows["parameters"].values()))


WRONG = {
    "schema": [
        lambda rows: rows.pop("ordering"),
        lambda rows: rows["ordering"].update(verdict="certain"),
        lambda rows: first(rows).update(step=-1),
        lambda rows: first(rows).update(shape=[3, -40]),
        lambda rows: rows["groups"][0].update(betas=[0.9, 1.5]),
        lambda rows: first(rows)["digest"].update(exp_avg="crc32:xyz"),
    ],
    "group-membership": [
        lambda rows: rows["groups"][0]["names"].pop(),
        lambda rows: rows["groups"][1]["names"].append(rows["groups"][0]["names"][0]),
        lambda rows: first(rows).update(group=1),
        lambda rows: first(rows).update(group=9),
    ],
    "positions": [lambda rows: first(rows).update(position=1)],
    "tensors": [lambda rows: first(rows)["slots"].append("max_exp_avg_sq"), lambda rows: first(rows)["slots"].pop()],
    "digest": [lambda rows: first(rows)["digest"].pop("exp_avg"), lambda rows: first(rows)["digest"].update(exp_avg="crc32:00000000")],
    "shape": [lambda rows: first(rows).update(shape=[40, 3])],
    "step": [lambda rows: first(rows).update(step=6)],
    "range": [
        lambda rows: rows["groups"][0].update(lr=-1.0),
        lambda rows: rows["groups"][0].update(eps={"float": "nan"}),
        lambda rows: rows["groups"][0].update(betas=[0.9, 1.0]),
    ],
}


def test_a_field_of_a_later_release_is_passed_over(written):
    edited(written, lambda rows: rows.update(extra=1))
    assert errors(written) == []
    assert len(store.load(written)) > 0


@pytest.mark.parametrize("rule,change", [(rule, change) for rule, changes in WRONG.items() for change in changes])
def test_a_manifest_that_breaks_a_rule_is_found(written, rule, change):
    edited(written, lambda rows: None)
    assert errors(written) == []
    edited(written, change)
    assert rule in {finding.rule for finding in errors(written)}


BROKEN = {
    "empty": b"",
    "short": b"\x10\x00",
    "length beyond the file": (10**15).to_bytes(8, "little") + b"{}",
    "length of 2^64": b"\xff" * 8 + b"{}",
    "no JSON": (4).to_bytes(8, "little") + b"{{{{",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "not UTF-8": (4).to_bytes(8, "little") + b'{"\xff"',
    "deep nesting": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "a key twice": (len(b'{"a":{},"a":{}}')).to_bytes(8, "little") + b'{"a":{},"a":{}}',
    "wrong row": (len(b'{"a":{"dtype":"F32"}}')).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}',
    "negative": (len(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}')).to_bytes(8, "little")
    + b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}',
    "infinite": (len(b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}')).to_bytes(8, "little")
    + b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}',
    "unknown dtype": (len(b'{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}')).to_bytes(8, "little")
    + b'{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}0000',
    "a hole": (len(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}')).to_bytes(8, "little")
    + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}00000000',
    "metadata of numbers": (len(b'{"__metadata__":{"a":1}}')).to_bytes(8, "little") + b'{"__metadata__":{"a":1}}',
    "no manifest": (2).to_bytes(8, "little") + b"{}",
    "another version": (len(b'{"__metadata__":{"ostate":"{\\"format_version\\":2}"}}')).to_bytes(8, "little")
    + b'{"__metadata__":{"ostate":"{\\"format_version\\":2}"}}',
    "a manifest that is a number": (len(b'{"__metadata__":{"ostate":"7"}}')).to_bytes(8, "little") + b'{"__metadata__":{"ostate":"7"}}',
    "a manifest without anything": (len(b'{"__metadata__":{"ostate":"{\\"format_version\\":1}"}}')).to_bytes(8, "little")
    + b'{"__metadata__":{"ostate":"{\\"format_version\\":1}"}}',
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_no_named_state_is_refused_with_a_reason(tmp_path, raw):
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(OstateError) as error:
        store.load(path)
    assert str(path) in str(error.value)
    assert errors(path)


def test_a_missing_file_is_no_finding_but_an_error(tmp_path):
    with pytest.raises(ReadError):
        validating.validate(tmp_path / "none.safetensors")
