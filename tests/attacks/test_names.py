"""Names that want to be paths, terminal commands or a script: written as names, shown as text."""

from __future__ import annotations

import json
import zlib

import pytest
from click.testing import CliRunner

from ostate.cli import main
from ostate.store import header
from tests.attacks.headers import sound_manifest

NAMES = ["../../../pwned/a.weight", "a\x1b[2J\x1b]0;owned\x07.weight", "a\nError: gone.weight", "<script>alert(1)</script>", "a\u202etxt.weight"]


@pytest.fixture(params=NAMES, ids=ascii)
def named(request, tmp_path):
    rows = json.loads(sound_manifest())
    one = rows["parameters"].pop("a")
    one["digest"] = {slot: f"crc32:{zlib.crc32(bytes(8)):08x}" for slot in one["slots"]}
    rows["parameters"][request.param] = one
    rows["groups"] = [{"names": [request.param], "lr": 0.1, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}]
    tensors = [header.Tensor(f"state.{request.param}.{slot}", "F32", (2,), at) for slot, at in (("exp_avg", 0), ("exp_avg_sq", 8))]
    path = tmp_path / "a" / "b" / "c" / "named.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(header.pack(tensors, json.dumps(rows)) + bytes(16))
    return path


def test_a_name_is_only_ever_text(named, tmp_path):
    out = named.parent / "out"
    out.mkdir()
    page = out / "page.html"
    commands = [["inspect", named, "--values"], ["names", named], ["verify", named], ["validate", named, "--deep"], ["diff", named, named]]
    commands += [["export", named, "--to", to, "-o", out / to] for to in ("torch", "less", "names")] + [["report", named, "-o", page]]
    for command in commands:
        done = CliRunner().invoke(main, [str(part) for part in command])
        assert done.exit_code in (0, 1, 3), done.exception
        assert all(line.isprintable() for line in done.output.replace("\t", "").split("\n")), command
        assert "\nError: gone" not in done.output
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != named]
    assert page in written
    assert all(path.is_relative_to(out) for path in written)
    assert "<script>alert" not in page.read_text()
    assert "\x1b" not in page.read_text()
