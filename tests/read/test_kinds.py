"""What a person gave by mistake is named: an adapter, a model, something compressed, a pointer, an empty file; and the state beside it."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ostate import read as formats
from ostate.errors import OstateError, ReadError
from ostate.read.adapters import read_adapter
from ostate.store import load
from tests.real import CASES

CHECKPOINT = CASES / "one-process" / "llama_all_linear_12" / "checkpoint-5"
LINEAR = torch.nn.Linear(3, 2)
LORA = {"base_model.model.q.lora_A.weight": torch.ones(2, 3), "base_model.model.q.lora_B.weight": torch.ones(3, 2)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def scheduler():
    return torch.optim.lr_scheduler.LambdaLR(torch.optim.AdamW(LINEAR.parameters()), lambda step: 1.0).state_dict()


def arguments(path):
    import transformers

    torch.save(transformers.TrainingArguments(output_dir=str(path.parent / "out"), report_to=[], use_cpu=True), path)


WHOLE = (CHECKPOINT / "optimizer.pt").read_bytes()
MADE = {
    # name -> (makes it, what is said, what to do)
    "optimizer.pt.gz": (lambda p: p.write_bytes(gzip.compress(WHOLE)), "compressed with gzip", "gunzip"),
    "a.bz2": (lambda p: p.write_bytes(bz2.compress(b"a")), "compressed with bzip2", "bunzip2"),
    "a.xz": (lambda p: p.write_bytes(lzma.compress(b"a")), "compressed with xz", "unxz"),
    "a.zst": (lambda p: p.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(9)), "compressed with zstd", "unzstd"),
    "lfs.pt": (lambda p: p.write_bytes(POINTER), "a git-lfs pointer", "git lfs pull"),
    "empty.pt": (lambda p: p.write_bytes(b""), "empty", "another checkpoint"),
    "zeros.pt": (lambda p: p.write_bytes(bytes(5000)), "nothing but zeros", "copy it again"),
    "page.pt": (lambda p: p.write_text("\n<!DOCTYPE html><html>404"), "a web page", "fetch the file again"),
    "denied.pt": (lambda p: p.write_text("<?xml version='1.0'?><Error/>"), "a server's answer", "fetch the file again"),
    "adapter_config.json": (lambda p: p.write_text(json.dumps({"peft_type": "LORA"})), "an adapter's configuration", "optimizer.pt"),
    "model.safetensors.index.json": (lambda p: p.write_text('{"weight_map": {}}'), "the index of a model in several files", "optimizer.pt"),
    "other.json": (lambda p: p.write_text("  [1]"), "JSON text", "optimizer.pt"),
    "a.txt": (lambda p: p.write_text("hello"), "a text", "optimizer.pt"),
    "a.npy": (lambda p: np.save(p, np.ones(3)), "a numpy array", "optimizer.pt"),
    "a.npz": (lambda p: np.savez(p, a=np.ones(3)), "numpy arrays (.npz)", "torch.save"),
    "b.npz": (lambda p: np.savez_compressed(p, a=np.ones(3)), "numpy arrays (.npz), compressed", "torch.save"),
    "a.gguf": (lambda p: p.write_bytes(b"GGUF" + bytes(20)), "GGUF", "optimizer.pt"),
    "plain.pkl": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "a plain pickle", "optimizer.pt"),
    "scheduler.pt": (lambda p: torch.save(scheduler(), p), "a learning-rate scheduler's state", "optimizer.pt"),
    "scaler.pt": (lambda p: torch.save({"scale": 1.0, "growth_factor": 2.0, "backoff_factor": 0.5}, p), "a gradient scaler's state", "optimizer.pt"),
    "rng_state.pth": (lambda p: torch.save({"python": (3, (1,), None), "cpu": torch.get_rng_state()}, p), "random number generators", "optimizer.pt"),
    "rng.pt": (lambda p: torch.save({"torch": torch.get_rng_state(), "cuda": torch.get_rng_state()}, p), "random number", "optimizer.pt"),
    "training_args.bin": (arguments, "a trainer's arguments", "optimizer.pt"),
    "adapter_model.bin": (lambda p: torch.save(LORA, p), "an adapter of LoRA or another tuner (2 tensors)", "optimizer.pt"),
    "other.safetensors": (lambda p: save_file(LORA, p), "an adapter of LoRA or another tuner (2 tensors)", "optimizer.pt"),
    "model.safetensors": (lambda p: save_file(LINEAR.state_dict(), p), "a model's weights (2 tensors)", "optimizer.pt"),
    "model.pt": (lambda p: torch.save(LINEAR.state_dict(), p), "a model's weights (2 tensors)", "optimizer.pt"),
    "bundle.pt": (lambda p: torch.save({"epoch": 3, "model": LINEAR.state_dict()}, p), "a model's weights (2 tensors)", "optimizer.pt"),
    "whole.pt": (lambda p: torch.save(LINEAR, p), "a pickled object (torch.nn.modules.linear.Linear)", "optimizer.pt"),
    "script.pt": (lambda p: torch.jit.save(torch.jit.script(LINEAR), str(p)), "a TorchScript program", "torch.save"),
    "one.pt": (lambda p: torch.save(torch.ones(3), p), "one tensor", "optimizer.pt"),
    "list.pt": (lambda p: torch.save([1], p), "a list of 1 things", "optimizer.pt"),
    "nothing.pt": (lambda p: torch.save({}, p), "an empty mapping", "optimizer.pt"),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_each_kind_of_file_is_named_with_what_to_do_and_the_state_beside_it(tmp_path, name):
    shutil.copy(CHECKPOINT / "optimizer.pt", tmp_path)
    make, what, fix = MADE[name]
    make(tmp_path / name)
    with pytest.raises(ReadError) as caught:
        formats.read(str(tmp_path / name))
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert name in caught.value.where


@pytest.mark.parametrize("name", ["optimizer.pt", "optimizer.bin"])
@pytest.mark.parametrize(("content", "what"), [(POINTER, "git-lfs pointer"), (b"", "empty"), (gzip.compress(WHOLE), "gzip"), (bytes(99), "zeros")])
def test_a_folder_whose_optimizer_file_is_none_says_what_that_file_is(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ReadError, match=what) as caught:
        formats.read(str(tmp_path))
    assert name in caught.value.where


@pytest.mark.parametrize("name", ["lfs.pt", "optimizer.pt.gz", "empty.pt", "page.pt"])
def test_the_same_is_said_of_an_adapter_and_of_a_named_file(tmp_path, name):
    make, what, _ = MADE[name]
    for ending in ("", ".safetensors"):
        path = tmp_path / f"{name}{ending}"
        make(path)
        for look in (read_adapter, load):
            with pytest.raises(OstateError) as caught:
                look(str(path))
            assert what in caught.value.what


def test_a_named_file_is_no_adapter_and_a_torch_file_no_named_file(tmp_path):
    import ostate

    out = tmp_path / "lora.ostate.safetensors"
    ostate.repair(str(CHECKPOINT), str(out))
    with pytest.raises(ReadError, match="this is a named optimizer state, not an adapter"):
        read_adapter(str(out))
    with pytest.raises(OstateError, match="a raw checkpoint: its parameters have no names yet"):
        load(str(CHECKPOINT / "optimizer.pt"))


def test_a_safetensors_header_whose_length_looks_like_another_start_is_still_one(tmp_path):
    """35,615 bytes of header begin like gzip: 0x1f 0x8b."""
    text = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(0x8B1F)
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(ReadError, match="this is a model's weights"):
        formats.read(str(tmp_path / "a.safetensors"))
