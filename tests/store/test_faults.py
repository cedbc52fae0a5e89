"""Whatever happens while writing: no output or a whole one, and never a changed input."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ostate import store
from ostate.core import limits
from ostate.core.system import reserve
from ostate.errors import OstateError, StoreError
from ostate.store import validating
from tests.records import replace

from .made import big, laid_out, trained

ROOT = Path(__file__).parents[2]


def whole(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.is_file()}


def test_an_existing_output_is_replaced_only_when_forced(state, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    with pytest.raises(StoreError, match="exists already"):
        store.write(state, out)
    assert out.read_text() == "mine"
    store.write(state, out, force=True)
    assert validating.validate(out, deep=True) == []


@pytest.mark.parametrize("link", ["itself", "symlink", "hard link"])
def test_an_input_is_never_the_output(state, tmp_path, link):
    source = tmp_path / "in" / "source.bin"
    target = source
    if link != "itself":
        target = tmp_path / "link"
        target.symlink_to(source) if link == "symlink" else target.hardlink_to(source)
    before = source.read_bytes()
    with pytest.raises(StoreError, match="one of the inputs"):
        store.write(state, target, force=True)
    assert source.read_bytes() == before


def test_a_named_file_is_not_written_over_itself(state, tmp_path):
    out = tmp_path / "out.safetensors"
    store.write(state, out)
    with pytest.raises(StoreError, match="one of the inputs"):
        store.write(store.load(out), out, force=True)


def test_force_leaves_no_shards_in_the_way_of_one_file_and_none_the_other_way(state, tmp_path):
    out = tmp_path / "out.safetensors"
    store.write(state, out, max_shard_bytes=700)
    store.write(state, out, force=True)
    assert store.load(out).path == str(out)
    assert not (tmp_path / "out.safetensors.index.json").exists()
    store.write(state, out, force=True, max_shard_bytes=700)
    assert not out.exists()
    assert validating.validate(out, deep=True) == []


@pytest.mark.parametrize(
    "where,words", [("no/such/out.safetensors", "folder does not exist"), (".", "is a folder"), ("in/source.bin/x", "not a folder")]
)
def test_an_impossible_place_is_said_so(state, tmp_path, where, words):
    with pytest.raises(StoreError, match=words):
        store.write(state, tmp_path / where)


def test_an_output_that_ends_as_a_folder_or_stands_for_standard_output_is_refused(tmp_path, monkeypatch):
    """`-o named/` without such a folder wrote a file `named`; `-o -` one that is called `-`."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="ends as a folder does"):
        store.check_target(f"{tmp_path}/named/")
    with pytest.raises(StoreError, match="standard output"):
        store.check_target("-")
    store.check_target(tmp_path / "-")


def test_a_name_that_no_reader_takes_is_refused_before_anything_is_written(state, tmp_path):
    name = next(iter(state.parameters))
    for letters, fits in ((limits.NAME - len("state.") - len(".exp_avg_sq"), True), (limits.NAME - len("state.") - len(".exp_avg_sq") + 1, False)):
        long = "n" * letters
        groups = tuple(group._replace(names=tuple(long if one == name else one for one in group.names)) for group in state.groups)
        parameters = {long if one == name else one: replace(held, name=long) if one == name else held for one, held in state.parameters.items()}
        renamed, out = replace(state, parameters=parameters, groups=groups), tmp_path / f"{letters}.safetensors"
        if fits:
            store.write(renamed, out)
            assert long in store.load(out).parameters
        else:
            with pytest.raises(StoreError, match="letters"):
                store.write(renamed, out)
            assert not out.exists()


def test_a_target_that_may_not_be_written_is_said_so(state, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        folder = Path("/proc")  # root writes everywhere but there
    with pytest.raises(StoreError) as error:
        store.write(state, folder / "out.safetensors")
    assert error.value.fix


def test_a_check_that_raises_leaves_nothing(state, tmp_path):
    def check(seen):
        raise StoreError("no")

    before = whole(tmp_path)
    with pytest.raises(StoreError, match="no"):
        store.write(state, tmp_path / "out.safetensors", check=check)
    assert whole(tmp_path) == before


def test_a_source_that_changes_meanwhile_is_noticed(state, tmp_path):
    source = tmp_path / "in" / "source.bin"

    def check(seen):
        source.write_bytes(source.read_bytes()[::-1])
        return []

    with pytest.raises(StoreError, match="changed while it was read"):
        store.write(state, tmp_path / "out.safetensors", check=check)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_source_that_ends_early_leaves_nothing(state, tmp_path):
    source = tmp_path / "in" / "source.bin"
    os.truncate(source, source.stat().st_size - 4)
    with pytest.raises(OstateError, match="ends early"):
        store.write(state, tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_broken_digest_in_the_source_is_found_later(state, tmp_path):
    """The bytes are copied under the digest that the source's directory records; deep validation tells that they differ."""
    source = tmp_path / "in" / "source.bin"
    raw = bytearray(source.read_bytes())
    raw[20] ^= 1
    source.write_bytes(raw)
    store.write(state, tmp_path / "out.safetensors")
    assert [finding.rule for finding in validating.validate(tmp_path / "out.safetensors", deep=True)] == ["digest"]


WRITE = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.store.made import big
from ostate import store
from ostate.core import limits
from ostate.errors import OstateError
from ostate.core.stream import Meter
import numpy
state = big(Path({folder!r}))
print("go", flush=True)
{before}
try:
    store.write(state, {out!r}, check=lambda seen: [], **{arguments!r})
except OstateError as error:
    print(error)
    sys.exit(3)
"""


def start(folder, out, before="", **arguments):
    code = WRITE.format(root=str(ROOT), folder=str(folder), out=str(out), before=before, arguments=arguments)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_file_size_limit_ends_in_a_message_and_nothing_else(tmp_path):
    big(tmp_path)
    before = whole(tmp_path)
    process = start(tmp_path, tmp_path / "out.safetensors", "resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    assert "beyond the size this system allows" in out
    assert whole(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(place)], capture_output=True).returncode:
        pytest.skip("may not mount here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_ends_in_a_message_and_nothing_else(tmp_path, small_disk):
    with pytest.raises(StoreError, match="the disk is full"):
        store.write(big(tmp_path), small_disk / "out.safetensors")
    assert list(small_disk.iterdir()) == []


def test_an_output_on_another_file_system_is_no_matter(tmp_path):
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no second file system here")
    out = Path(f"/dev/shm/ostate-test-{os.getpid()}.safetensors")
    try:
        store.write(laid_out(tmp_path, trained()[1]), out)
        assert validating.validate(out, deep=True) == []
    finally:
        out.unlink(missing_ok=True)


def test_of_two_writers_at_once_one_wins_and_the_file_is_whole(tmp_path):
    big(tmp_path)
    out = tmp_path / "out.safetensors"
    both = [start(tmp_path, out) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 3], [0, 0]), said
    assert codes == [0, 3], said
    assert validating.validate(out, deep=True) == []
    assert [path for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def killed(folder, times, **arguments):
    """Kill a writer at random moments; after each kill the output is absent or whole and the input is as it was."""
    big(folder)
    source = hashlib.sha256((folder / "big.bin").read_bytes()).hexdigest()
    out = folder / "out.safetensors"
    process = start(folder, out, **arguments)
    assert process.stdout.readline() == "go\n"
    began = time.monotonic()
    assert process.wait(timeout=120) == 0, process.stderr.read()
    length = time.monotonic() - began
    rng = random.Random(7)
    absent = there = 0
    for _ in range(times):
        for path in [*folder.glob("out*"), *folder.glob(".out*")]:
            path.unlink()
        process = start(folder, out, **arguments)
        assert process.stdout.readline() == "go\n"
        time.sleep(rng.uniform(0, 1.1) * length)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert hashlib.sha256((folder / "big.bin").read_bytes()).hexdigest() == source
        if out.exists() or (folder / "out.safetensors.index.json").exists():
            there += 1
            assert validating.validate(out, deep=True) == []
        else:
            absent += 1
    return absent, there


@pytest.mark.parametrize("arguments", [{}, {"max_shard_bytes": 6 << 20}], ids=["one file", "shards"])
def test_a_writer_killed_at_any_moment_leaves_no_output_or_a_whole_one(tmp_path, arguments):
    assert sum(killed(tmp_path, 4, **arguments)) == 4


@pytest.mark.long
@pytest.mark.parametrize("arguments", [{}, {"max_shard_bytes": 6 << 20}], ids=["one file", "shards"])
def test_a_writer_killed_two_hundred_times_never_leaves_half_a_file(tmp_path, arguments):
    absent, there = killed(tmp_path, 200, **arguments)
    assert absent > 20
    assert there > 20


@pytest.mark.skipif(not (sys.platform.startswith("linux") and hasattr(os, "posix_fallocate")), reason="fallocate(2)")
def test_room_is_asked_for_at_once_and_a_file_too_large_is_told_before_a_byte_is_written(tmp_path):
    with open(tmp_path / "x", "wb") as file:
        reserve(file.fileno(), 1 << 20)
        with pytest.raises(OSError, match=r"large|space"):
            reserve(file.fileno(), 1 << 60)
    assert (tmp_path / "x").stat().st_size in {0, 1 << 20}  # 0 where the file system cannot


def test_a_file_system_that_cannot_promise_room_is_written_as_ever():
    with open(os.devnull, "wb") as file:
        reserve(file.fileno(), 1 << 20)
