"""Ways to do harm through JSON: safetensors headers, adapter_config.json, manifests, shard indexes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ostate.store import header
from tests import real

Attack = Callable[[Path], list[str]]
"""Makes its files in a folder, and returns the command."""
REPAIR = ["repair", "optimizer.pt", "--adapter", "adapter", "-o", "out.safetensors"]
KEY = "base_model.model.layers.0.q_proj.lora_A.weight"
ROW = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
SOUND = json.dumps({KEY: ROW})


def checkpoint(folder: Path) -> Path:
    """Copy a small real checkpoint: `optimizer.pt` and `adapter/` in the folder. Returns the adapter folder."""
    case = real.case("llama_qv")
    shutil.copy(case.state, folder / "optimizer.pt")
    (folder / "adapter").mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(case.adapter.parent / name, folder / "adapter")
    return folder / "adapter"


def weights(text: str | bytes, data: bytes = bytes(8), length: int | None = None) -> Attack:
    """An adapter whose safetensors header is this text."""

    def make(folder: Path) -> list[str]:
        raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        at = checkpoint(folder) / "adapter_model.safetensors"
        at.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
        return REPAIR

    return make


def row(**changes: Any) -> Attack:
    """A header of one tensor with a wrong row."""
    return weights(json.dumps({KEY: {**ROW, **changes}}))


def manifest(text: str) -> Attack:
    """A file that is a sound safetensors file, with this manifest."""

    def make(folder: Path) -> list[str]:
        tensors = [header.Tensor(f"state.a.{slot}", "F32", (2,), at) for slot, at in (("exp_avg", 0), ("exp_avg_sq", 8))]
        (folder / "named.safetensors").write_bytes(header.pack(tensors, text) + bytes(16))
        return ["verify", "named.safetensors"]

    return make


def sound_manifest(**changes: Any) -> str:
    """A manifest of one parameter as ostate writes it, with changes at the top."""
    one = {
        "group": 0, "position": 0, "adapter_key": "a", "shape": [2], "step": 3.0, "slots": ["exp_avg", "exp_avg_sq"], "decoded_from": "plain",
        "dtype": "F32", "digest": {"exp_avg": "crc32:00000000", "exp_avg_sq": "crc32:00000000"},
    }  # fmt: skip
    rows = {
        "format_version": 1, "created_by": "ostate", "optimizer": {"class": "torch.optim.AdamW", "family": "adamw"},
        "groups": [{"names": ["a"], "lr": 0.1}], "parameters": {"a": one}, "adapter": {}, "source": {"layout": "torch", "files": []},
        "ordering": {"source": "given", "verdict": "unverified", "margin": None, "undecided": ["a"], "rejected": []}, "findings": [],
    }  # fmt: skip
    return json.dumps({**rows, **changes})


def config(change: Any) -> Attack:
    """An adapter_config.json that is not what PEFT writes: text, or rows to change."""

    def make(folder: Path) -> list[str]:
        at = checkpoint(folder) / "adapter_config.json"
        at.write_text(change if isinstance(change, str) else json.dumps({**json.loads(at.read_text()), **change}))
        return REPAIR

    return make


def index(**rows: Any) -> Attack:
    """A shard index beside nothing."""

    def make(folder: Path) -> list[str]:
        (folder / "named.safetensors.index.json").write_text(json.dumps(rows))
        return ["inspect", "named.safetensors.index.json"]

    return make


HUNDRED = 100_000_000
TEN = 10_000_000


def bulk(size: int) -> dict[str, Attack]:
    """JSON of this many bytes that is nothing but its own weight."""
    mb = f"{size // 1_000_000} MB"
    return {  # made when asked for: a table of these would be half a gigabyte
        f"header: {mb} of brackets": lambda folder: weights(b"[" * size)(folder),
        f"header: {mb} of empty lists": lambda folder: weights(b"[" + b"[]," * (size // 3) + b"1]")(folder),
        f"header: {mb} of empty tables in a row": lambda folder: weights(b'{"a":[' + b"{}," * (size // 3 - 10) + b"1]}")(folder),
        f"header: {mb} of numbers": lambda folder: weights(b'{"a":[' + b"1234," * (size // 5) + b"1]}")(folder),
        f"config: {mb}": lambda folder: config('{"a":[' + "[]," * (size // 3) + "1]}")(folder),
    }


LONG: dict[str, Attack] = {**bulk(HUNDRED), **bulk(40_000_000)}
"""The same as some of `REFUSED` at full size."""
REFUSED: dict[str, Attack] = {
    "header: no JSON": weights("{"),
    "header: a list": weights("[]"),
    "header: not UTF-8": weights(b'{"\xff\xfe":1}'),
    "header: half a surrogate as a name": weights('{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}x'),
    "header: longer than the file": weights(SOUND, length=1 << 20),
    "header: eight exabytes": weights(SOUND, length=(1 << 63) - 1),
    **bulk(TEN),
    "header: more than 100 MB": weights(b" " * (HUNDRED + 1)),
    "header: nested half a million deep": weights(b'{"a":' * 500_000 + b"1" + b"}" * 500_000),
    "header: a key twice": weights(f"{SOUND[:-1]},{SOUND[1:]}"),
    "header: a row's key twice": weights(SOUND.replace('"dtype"', '"dtype": "F32", "dtype"')),
    "header: overlapping offsets": weights(json.dumps({"a": ROW, "b": {**ROW, "data_offsets": [4, 12]}}), bytes(12)),
    "header: two tensors over the same bytes": weights(json.dumps({"a": ROW, "b": ROW})),
    "header: metadata that is not text": weights(json.dumps({"__metadata__": {"a": 1}, KEY: ROW})),
    "header: metadata that is a list": weights(json.dumps({"__metadata__": [], KEY: ROW})),
    "header: no tensor": weights("{}"),
    "header: a row that is a number": weights(json.dumps({KEY: 1})),
    "header: an unknown dtype": row(dtype="F33"),
    "header: a dtype with terminal escapes": row(dtype="\x1b[2J\x07"),
    "header: a dtype of a million letters": row(dtype="F" * 1_000_000),
    "header: a dtype that is a list": row(dtype=["F32"]),
    "header: a dtype of another size": row(dtype="F16"),
    "header: a negative size": row(shape=[-2]),
    "header: a size that is true": row(shape=[True, 2]),
    "header: a size that is not a whole number": row(shape=[2.0]),
    "header: a shape that is text": row(shape="2"),
    "header: an elephant of a shape": row(shape=[1 << 62, 1 << 62]),
    "header: a hundred thousand axes": row(shape=[1] * 100_000 + [2]),
    "header: a hundred thousand huge axes": row(shape=[10**18] * 100_000),
    "header: a size of four thousand digits": weights(SOUND.replace("[2]", "[" + "9" * 4000 + "]")),
    "header: a size of a million digits": weights(SOUND.replace("[2]", "[" + "9" * 1_000_000 + "]")),
    "header: an infinite size": weights(SOUND.replace("[2]", "[Infinity]")),
    "header: offsets backwards": row(data_offsets=[8, 0]),
    "header: offsets outside the file": row(data_offsets=[1 << 40, (1 << 40) + 8]),
    "header: one offset": row(data_offsets=[0]),
    "header: no offsets": weights(json.dumps({KEY: {"dtype": "F32", "shape": [2]}})),
    "config: no JSON": config("{"),
    "config: a list": config("[]"),
    "config: nested half a million deep": config('{"a":' * 500_000 + "1" + "}" * 500_000),
    "config: a number of a million digits": config('{"r":' + "9" * 1_000_000 + "}"),
    "config: half a surrogate": config('{"peft_type": "\\ud800"'),
    "manifest: no JSON": manifest("{"),
    "manifest: a list": manifest("[]"),
    "manifest: of the future": manifest(sound_manifest(format_version=2)),
    "manifest: nested deep": manifest('{"a":' * 100_000 + "1" + "}" * 100_000),
    "manifest: no parameters": manifest('{"format_version": 1}'),
    "manifest: parameters that are a list": manifest(sound_manifest(parameters=[1])),
    "manifest: a parameter that no tensor holds": manifest(sound_manifest(parameters={"b": json.loads(sound_manifest())["parameters"]["a"]})),
    "manifest: a group that lists no parameter": manifest(sound_manifest(groups=[{"names": ["zebra"]}])),
    "manifest: groups that are a number": manifest(sound_manifest(groups=7)),
    "manifest: findings of another kind": manifest(sound_manifest(findings=[1])),
    "manifest: a key twice": manifest(sound_manifest()[:-1] + ', "parameters": {}}'),
    "manifest: a position of 10^12": manifest(sound_manifest().replace('"position": 0', f'"position": {10**12}')),
    "index: a file above": index(metadata={}, weight_map={"state.a.exp_avg": "../secret.safetensors"}),
    "index: an absolute file": index(metadata={}, weight_map={"state.a.exp_avg": "/etc/passwd"}),
    "index: a file that is a number": index(metadata={}, weight_map={"state.a.exp_avg": 1}),
    "index: no map": index(metadata={}),
}
"""What must end with exit code 3."""

STRANGE: dict[str, Attack] = {
    "manifest: a shape of other numbers": manifest(sound_manifest().replace('"shape": [2]', '"shape": [3]')),
    "config: a base model above": config({"base_model_name_or_path": "../../../../etc/passwd"}),
    "config: a base model on the network": config({"base_model_name_or_path": "https://example.com/model"}),
    "config: a base model of a million letters": config({"base_model_name_or_path": "a" * 1_000_000}),
    "config: a base model with terminal escapes": config({"base_model_name_or_path": "\x1b[2J\x1b]0;owned\x07\n"}),
    "config: remote code": config({"auto_map": {"base_model_class": "x", "parent_library": "os"}, "trust_remote_code": True}),
    "config: a rank below zero": config({"r": -1}),
    "config: a rank that is text": config({"r": "__import__('os')"}),
    "config: a huge rank": config({"r": 10**18}),
    "config: another method": config({"peft_type": "../../evil"}),
    "config: a method that is a list": config({"peft_type": ["LORA"]}),
    "config: targets of another kind": config({"target_modules": {"a": [1]}}),
    "config: a million targets": config({"target_modules": [str(n) for n in range(1_000_000)]}),
    "config: a task that is a number": config({"task_type": 7}),
}
"""What may be read past: the numbers speak for themselves. Exit code 0, 1 or 3, and nothing else happens."""
