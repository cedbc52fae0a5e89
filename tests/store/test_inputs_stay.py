"""No file that was read is ever replaced: not the adapter found beside the state, not its configuration, not a list, not what lies in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
from click.testing import CliRunner

import ostate
from ostate.cli import main
from ostate.errors import OstateError, StoreError


def digests(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def place(llama_run, tmp_path):
    """A checkpoint, its base model, an order, an earlier adapter: everything that `repair` may read."""
    shutil.copytree(llama_run.checkpoint, tmp_path / "checkpoint-12")
    shutil.copytree(llama_run.base, tmp_path / "base")
    shutil.copytree(llama_run.checkpoint, tmp_path / "before", ignore=shutil.ignore_patterns("optimizer.pt"))
    names = [llama_run.names[p] for group in llama_run.optimizer.param_groups for p in group["params"]]
    (tmp_path / "order.txt").write_text("\n".join(names))
    return tmp_path


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("checkpoint-12/optimizer.pt", {}),
        ("checkpoint-12/adapter_model.safetensors", {}),
        ("checkpoint-12/adapter_config.json", {}),
        ("checkpoint-12/trainer_state.json", {}),
        ("checkpoint-12/adapter_model.safetensors", {"adapter": "checkpoint-12"}),
        ("checkpoint-12/adapter_model.safetensors", {"adapter": "checkpoint-12", "order": "order.txt", "evidence": False}),
        ("order.txt", {"order": "order.txt"}),
        ("base/config.json", {"base": "base"}),
        ("base/config.json", {"base": "base", "order": "order.txt"}),
        ("base/model.safetensors", {"base": "base"}),
        ("before/adapter_model.safetensors", {"previous": "before"}),
        ("before/adapter_config.json", {"previous": "before"}),
    ],
)
@pytest.mark.parametrize("how", ["the file itself", "a link to it", "a second name of it"])
@pytest.mark.parametrize("force", [True, False])
def test_repair_never_writes_over_what_it_read(place, target, options, how, force):
    out = place / target
    if how != "the file itself":
        (os.symlink if how == "a link to it" else os.link)(out, place / "out.safetensors")
        out = place / "out.safetensors"
    more = {key: str(place / value) if isinstance(value, str) else value for key, value in options.items()}
    before = digests(place)
    refusals = "one of the inputs|writes a safetensors file"  # the second by the name `optimizer.pt` alone
    with pytest.raises(StoreError, match=refusals if force else f"{refusals}|exists already"):
        ostate.repair(str(place / "checkpoint-12"), str(out), force=force, **more)
    assert digests(place) == before


def test_an_earlier_output_in_the_folder_is_replaced_when_asked(place):
    out = place / "checkpoint-12" / "lora.ostate.safetensors"
    ostate.repair(str(place / "checkpoint-12"), str(out))
    first = out.read_bytes()
    out.write_bytes(first[:-1] + bytes([first[-1] ^ 1]))
    ostate.repair(str(place / "checkpoint-12"), str(out), force=True)
    assert out.read_bytes() == first


def test_an_index_that_is_not_ours_stays(place):
    index = place / "base" / "new.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "model.safetensors"}}))
    ostate.repair(str(place / "checkpoint-12"), str(place / "base" / "new.safetensors"), base=str(place / "base"), force=True)
    assert index.exists()


@pytest.fixture
def named(place):
    return ostate.repair(str(place / "checkpoint-12"), str(place / "s.ostate.safetensors")).out[0]


@pytest.mark.parametrize(
    ("to", "target", "options"),
    [
        ("torch", "s.ostate.safetensors", {}),
        ("ostate", "s.ostate.safetensors", {}),
        ("torch", "order.txt", {"wanted": "order.txt"}),
        ("names", "before/adapter_model.safetensors", {"wanted": "before"}),
        ("ostate", "before/adapter_config.json", {"wanted": "before"}),
        ("dcp", "before", {"wanted": "before"}),
        ("dattri", ".", {}),
        ("deepspeed-universal", "before", {"adapter": "before"}),
        ("deepspeed-universal", ".", {"adapter": "before"}),
    ],
)
def test_export_never_writes_over_what_it_read(place, named, to, target, options):
    before = digests(place)
    more = {key: str(place / value) for key, value in options.items()}
    with pytest.raises(OstateError, match="input"):
        ostate.export(named, to, place / target, force=True, **more)
    assert digests(place) == before


def test_report_never_writes_over_what_it_draws(place, named):
    for target in ("s.ostate.safetensors", "checkpoint-12/adapter_model.safetensors"):
        page = place / f"{os.path.basename(target)}.html"
        os.link(place / target, page)
        before = digests(place)
        done = CliRunner().invoke(main, ["report", named, "--adapter", str(place / "checkpoint-12"), "-o", str(page), "--force"])
        assert (done.exit_code, "one of the inputs" in done.output) == (3, True), done.output
        assert digests(place) == before
