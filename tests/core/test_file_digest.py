"""The SHA-256 of a file, taken in a thread beside other work."""

from __future__ import annotations

import hashlib
import threading

import pytest

import ostate
from ostate.commands import repair
from ostate.core import file_digest
from ostate.core.file_digest import sha256_beside, sha256_of_file, sha256_of_place
from ostate.errors import ReadError
from tests.test_costs import checkpoint


@pytest.fixture
def file(tmp_path):
    """Two whole chunks and a part of one."""
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(b"0123456789abcdef" * (5 << 17))
    return path


def test_both_ways_give_hashlibs_digest(file, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"other")
    with sha256_beside(str(file)) as digest_of:
        assert digest_of(str(other)) == hashlib.sha256(b"other").hexdigest()
        assert digest_of(str(file)) == hashlib.sha256(file.read_bytes()).hexdigest() == sha256_of_file(str(file))


def test_without_a_file_to_begin_with_no_thread_is_started(file):
    before = threading.active_count()
    with sha256_beside(None) as digest_of:
        assert threading.active_count() == before
        assert digest_of(str(file)) == sha256_of_file(str(file))


def test_a_file_that_is_gone_is_told_to_whoever_asks(tmp_path):
    with sha256_beside(str(tmp_path / "gone")) as digest_of, pytest.raises(ReadError, match="cannot read the file"):
        digest_of(str(tmp_path / "gone"))


@pytest.mark.parametrize("fault", [MemoryError(), ImportError("mmap: cannot open shared object file: Too many open files"), OSError(24, "too many")])
def test_what_fails_in_the_thread_alone_is_read_again_and_never_the_digest_of_less(file, monkeypatch, capfd, fault):
    threads = []

    def failing(size):
        threads.append(threading.current_thread())
        raise fault

    monkeypatch.setattr(file_digest, "new_buffer", failing)
    with sha256_beside(str(file)) as digest_of:
        assert digest_of(str(file)) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()
    assert capfd.readouterr().err == ""


def test_a_file_that_is_cut_while_the_thread_reads_it_is_read_again(file, monkeypatch):
    read, main = file_digest.system.read_into, threading.main_thread()

    def cutting(descriptor, buffer, at):
        count = read(descriptor, buffer, at)
        if threading.current_thread() is not main:
            file.write_bytes(b"short")
        return count

    monkeypatch.setattr(file_digest.system, "read_into", cutting)
    with sha256_beside(str(file)) as digest_of:
        assert digest_of(str(file)) == hashlib.sha256(b"short").hexdigest()


def test_a_refusal_leaves_no_thread_behind(file):
    before = threading.active_count()
    with pytest.raises(KeyError), sha256_beside(str(file)):
        raise KeyError
    assert threading.active_count() == before


def test_repair_begins_with_the_digest_before_it_compares_numbers(tmp_path, monkeypatch):
    folder, happened = checkpoint(tmp_path / "run", layers=2), []
    begin, compare = file_digest._Beside.start, repair.order_among
    monkeypatch.setattr(file_digest._Beside, "start", lambda self: (happened.append("digest"), begin(self)))
    monkeypatch.setattr(repair, "order_among", lambda *given: (happened.append("numbers"), compare(*given))[1])
    done = repair.repair(str(folder))
    assert happened == ["digest", "numbers"]
    assert done.named.adapter["sha256"] == sha256_of_file(str(folder / "adapter_model.safetensors"))


@pytest.fixture
def place(tmp_path):
    """A pipeline: a large file, and a component in a folder of its own."""
    folder = tmp_path / "pipeline"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "config.json").write_text("{}")
    (folder / "unet" / "weights.bin").write_bytes(b"0123456789abcdef" * (3 << 16))
    return folder


def test_the_digest_of_a_place_is_that_of_its_configurations_and_weights_wherever_it_lies(place, tmp_path):
    found = sha256_of_place(str(place))
    (place / "README.md").write_text("read me")
    (place / "checkpoint-5").mkdir()
    (place / "checkpoint-5" / "adapter_model.safetensors").write_bytes(b"0" * 9)
    ostate.repair(str(checkpoint(tmp_path / "run", layers=2)), str(place / "lora.ostate.safetensors"))
    place.rename(tmp_path / "moved")
    assert sha256_of_place(str(tmp_path / "moved")) == found


@pytest.mark.parametrize(("name", "at"), [("unet/config.json", 0), ("unet/weights.bin", 0), ("unet/weights.bin", 3 << 20), ("model_index.json", 1)])
def test_the_digest_of_a_place_is_another_where_a_file_ends_or_begins_otherwise_or_is_renamed(place, name, at):
    known = {sha256_of_place(str(place)), sha256_of_place(str(place / name))}
    data = (place / name).read_bytes()
    (place / name).write_bytes(data[:at] + b"\n" + data[at + 1 :])
    known |= {sha256_of_place(str(place)), sha256_of_place(str(place / name))}
    (place / name).rename((place / name).with_name("other.bin"))
    known.add(sha256_of_place(str(place)))
    assert len(known) == 5


def test_what_is_not_here_is_known_by_its_address(tmp_path):
    assert len({sha256_of_place(text) for text in ("hf://org/model", "hf://other/model", str(tmp_path / "none"))}) == 3
