"""Remote objects through fsspec: the right bytes, and hardly more of them than the index."""

from __future__ import annotations

import functools
import http.server
import threading
from typing import ClassVar

import pytest
import torch

from ostate import formats
from ostate.errors import ReadError
from ostate.files import read_at, size_of

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
