"""Remote objects through fsspec: the right bytes, and hardly more of them than the index."""

from __future__ import annotations

import functools
import http.server
import threading
from typing import ClassVar

import pytest
import torch

from ostate import read as formats
from ostate.commands.inspect import inspect
from ostate.commands.repair import repair
from ostate.core.files import read_at, size_of
from ostate.errors import ReadError, UnknownFormat
from ostate.read.weights import candidates
from tests import real

fsspec = pytest.importorskip("fsspec")

PARAMETERS = 448
"""LoRA on every linear layer of a 32-layer model."""


@pytest.fixture
def counted(monkeypatch):
    """A filesystem `counted://` that serves local files by range, as an object store does, and writes down every range."""
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

    fetched = []

    class File(AbstractBufferedFile):
        def _fetch_range(self, start, end):
            fetched.append(end - start)
            with open(self.path, "rb") as file:
                file.seek(start)
                return file.read(end - start)

    class System(AbstractFileSystem):
        protocol = "counted"

        def info(self, path, **_):
            return LocalFileSystem().info(self._strip_protocol(path))

        def ls(self, path, detail=True, **_):
            return LocalFileSystem().ls(self._strip_protocol(path), detail=detail)

        def _open(self, path, mode="rb", **kwargs):
            return File(self, self._strip_protocol(path), mode, **kwargs)

    fsspec.register_implementation("counted", System, clobber=True)
    return fetched


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The AdamW state of 448 parameters of 1.4 million elements each, 5 GB as the file system counts, almost nothing on disk."""
    path = tmp_path_factory.mktemp("large") / "optimizer.pt"
    state = {
        index: {"step": torch.tensor(500.0), "exp_avg": torch.empty(64, 22016), "exp_avg_sq": torch.empty(64, 22016)} for index in range(PARAMETERS)
    }
    with torch.serialization.skip_data():
        torch.save({"state": state, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": list(range(PARAMETERS))}]}, path)
    return path


def test_a_state_of_five_gigabytes_is_read_with_less_than_two_megabytes(counted, large):
    raw = formats.read(f"counted://{large}")
    assert size_of(f"counted://{large}") > 5e9
    assert len(raw.entries) == PARAMETERS
    assert raw.entries[-1].shape == (64, 22016)
    assert sum(counted) < 2_000_000


def test_inspect_of_a_folder_with_that_state_needs_no_more(counted, large, tmp_path):
    """A Trainer's checkpoint: the adapter and a long log beside the state."""
    from safetensors.torch import save_file

    (tmp_path / "optimizer.pt").symlink_to(large)
    tensors = {f"base_model.model.model.layers.{at}.self_attn.q_proj.lora_A.weight": torch.zeros(64, 2016) for at in range(30)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 64, "peft_version": "0.19.0"}')
    log = ",".join(f'{{"loss": 0.5, "step": {step}}}' for step in range(200_000))
    (tmp_path / "trainer_state.json").write_text(f'{{"epoch": 1.0, "global_step": 500, "is_world_process_zero": true, "log_history": [{log}]}}')
    (tmp_path / "tokenizer.json").write_text('{"vocab": "' + "x" * 4_000_000 + '"}')
    seen = inspect(f"counted://{tmp_path}", adapter=f"counted://{tmp_path}")
    assert len(seen.raw.entries) == PARAMETERS
    assert seen.raw.facts["global_step"] == 500
    assert seen.raw.facts["peft_version"] == "0.19.0"
    assert seen.fit.tensors == 30
    assert sum(counted) < 2_000_000


def in_memory(folder, name):
    """Copy a folder into fsspec's memory file system, and return its address."""
    system = fsspec.filesystem("memory")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            system.pipe_file(f"/{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return f"memory://{name}"


FOLDERS = [
    *real.names("distributed"), "llama_qv", "bundled", "two_adapters", "save_head_embed", "accelerate_save_state", "optim_adamw_bnb_8bit",
]  # fmt: skip


def adapter_of(raw):
    """Return the checkpoint's own weights, the likeliest; None where there are none."""
    found = candidates(raw)
    return found.adapters[0] if found.adapters and not found.on_trial else None


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_listed_and_read_as_the_local_one(name):
    one = real.case(name)
    folder = one.state if one.state.is_dir() else one.state.parent
    state = None if one.state.is_dir() else one.state.name
    if name.endswith("_rr_universal"):
        with pytest.raises(ReadError, match="round_robin_gradients"):
            formats.read(in_memory(folder, name))
        return
    here, there = formats.read(str(folder), state=state), formats.read(in_memory(folder, name), state=state)
    assert there.source == f"memory://{name}"
    assert (there.layout, there.optimizer, there.recorded) == (here.layout, here.optimizer, here.recorded)
    assert [(e.name, e.shape, e.step, e.group) for e in there.entries] == [(e.name, e.shape, e.step, e.group) for e in here.entries]
    assert [sorted(e.slots) for e in there.entries] == [sorted(e.slots) for e in here.entries]
    for mine, its in zip(here.entries, there.entries):
        for slot in mine.slots:
            assert (mine.slots[slot].read() == its.slots[slot].read()).all()
    assert {key: value for key, value in there.facts.items() if key != "folder"} == {k: v for k, v in here.facts.items() if k != "folder"}
    assert set(there.weights) == set(here.weights)
    try:
        mine = adapter_of(here)
    except ReadError as error:
        with pytest.raises(ReadError, match=error.what.partition(":")[0]):
            adapter_of(there)
        return
    its = adapter_of(there)
    if mine is None:
        assert its is None
    elif mine.path.startswith(str(folder)):
        assert set(mine.tensors) == set(its.tensors)
        assert dict(mine.config) == dict(its.config)


@pytest.mark.parametrize("name", ["llama_qv", "ds_z2", "ds_z2_universal", "fsdp2_dcp", "trainer_fsdp2_shard"])
def test_repair_of_a_folder_writes_the_bytes_that_it_writes_of_the_local_one(name, tmp_path):
    one = real.case(name)
    folder = one.state if one.state.is_dir() else one.state.parent
    given = {"base": str(real.CASES / "one-process" / f"{name}.base"), "state": one.state.name} if one.state.is_file() else {}
    here = repair(str(folder), str(tmp_path / "here.safetensors"), **given)
    there = repair(in_memory(folder, f"{name}/{folder.name}"), str(tmp_path / "there.safetensors"), **given)
    assert there.ordering.verdict == here.ordering.verdict
    assert (tmp_path / "there.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()


def test_a_folder_without_a_state_and_one_that_is_not_there_say_so():
    fsspec.filesystem("memory").pipe_file("/empty/config.json", b"{}")
    with pytest.raises(UnknownFormat, match="no optimizer state in this folder"):
        formats.read("memory://empty")
    with pytest.raises(ReadError, match="no such object"):
        formats.read("memory://nowhere/at/all")


def test_two_states_behind_a_scheme_are_listed_by_their_names_in_the_folder(tmp_path):
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        torch.save({"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]}, tmp_path / f"checkpoint-{step}/optimizer.pt")
    where = in_memory(tmp_path, "run_of_two")
    with pytest.raises(UnknownFormat, match=r"2 states in this folder: checkpoint-10/optimizer\.pt, checkpoint-5/optimizer\.pt"):
        formats.read(where)
    assert formats.read(where, state="checkpoint-5").files[0].path == f"{where}/checkpoint-5/optimizer.pt"


def test_a_tensor_of_a_folder_is_fetched_by_its_own_ranges(counted):
    folder = real.case("ds_z2").state
    raw = formats.read(f"counted://{folder}")
    before = len(counted), sum(counted)
    entry = next(entry for entry in raw.entries if entry.has_state)
    entry.slots["exp_avg_sq"].read()
    assert sum(counted) - before[1] == 4 * entry.numel


def test_tensors_are_fetched_by_their_own_ranges(counted, tmp_path):
    values = torch.randn(300, 1000)
    torch.save({"state": {0: {"step": torch.tensor(2.0), "exp_avg": values}}, "param_groups": [{"params": [0]}]}, tmp_path / "optimizer.pt")
    raw = formats.read(f"counted://{tmp_path}/optimizer.pt")
    before = sum(counted)
    assert (raw.entries[0].slots["exp_avg"].read() == values.numpy()).all()
    assert sum(counted) - before == values.nbytes


def test_a_reader_that_goes_on_is_given_more_at_a_time(counted, tmp_path):
    data = bytes(range(256)) * 16384
    (tmp_path / "blob").write_bytes(data)
    path = f"counted://{tmp_path}/blob"
    pieces = [read_at(path, at, 1 << 18) for at in range(0, len(data), 1 << 18)]
    assert b"".join(pieces) == data
    assert len(counted) == 2


def test_memory_objects_are_read():
    system = fsspec.filesystem("memory")
    parameter = torch.nn.Parameter(torch.randn(3, 4))
    optimizer = torch.optim.AdamW([parameter])
    parameter.square().sum().backward()
    optimizer.step()
    with system.open("/run/optimizer.pt", "wb") as file:
        torch.save(optimizer.state_dict(), file)
    raw = formats.read("memory://run/optimizer.pt")
    assert (raw.entries[0].slots["exp_avg_sq"].read() == optimizer.state[parameter]["exp_avg_sq"].numpy()).all()
    assert raw.entries[0].step == 1.0


def test_no_such_object_is_an_error_that_names_it():
    with pytest.raises(ReadError, match="no such object") as error:
        formats.read("memory://run/nothing.pt")
    assert error.value.where == "memory://run/nothing.pt"


def test_an_unknown_scheme_is_an_error():
    with pytest.raises(ReadError, match="cannot open"):
        size_of("nowhere://x/y")


def test_a_scheme_without_its_package_says_what_to_install(monkeypatch):
    import importlib.util

    if importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(ReadError, match="s3:// needs another package") as error:
        size_of("s3://bucket/optimizer.pt")
    assert "s3fs" in error.value.fix


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Python's file server, with ranges, which it lacks; `sent` counts bytes of bodies."""

    sent: ClassVar[list[int]] = []

    def do_GET(self):
        asked = self.headers.get("Range")
        with open(self.translate_path(self.path), "rb") as file:
            data = file.read()
        begin, end = 0, len(data)
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last) + 1, len(data)) if last else len(data)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - begin))
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[begin:end])
        self.sent.append(end - begin)

    def log_message(self, *_):
        pass


def test_http_is_read_by_ranges(tmp_path):
    pytest.importorskip("aiohttp")
    values = torch.randn(500, 1000)
    torch.save({"state": {0: {"step": torch.tensor(2.0), "exp_avg": values}}, "param_groups": [{"params": [0]}]}, tmp_path / "optimizer.pt")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranges, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        raw = formats.read(f"http://127.0.0.1:{server.server_port}/optimizer.pt")
        assert raw.entries[0].step == 2.0
        assert sum(Ranges.sent) < 100_000
        assert (raw.entries[0].slots["exp_avg"].read() == values.numpy()).all()
        with pytest.raises(ReadError, match=r"no such object|cannot open"):
            size_of(f"http://127.0.0.1:{server.server_port}/nothing.pt")
    finally:
        server.shutdown()
        server.server_close()
