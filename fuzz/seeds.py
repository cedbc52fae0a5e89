"""Start the corpus of every target from small real files: `python -m fuzz.seeds`. Every seed is made here; none is stored."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import torch

from fuzz.structured import PART
from fuzz.targets import SMALL_FILES
from ostate.core.naming import NamedParameter, NamedState, Ordering
from ostate.core.state import Group
from ostate.errors import OstateError
from ostate.read.container.zip import ZipIndex
from ostate.store import header, loading, write
from tests import real

CORPUS = Path(__file__).parent / "corpus"
LARGEST = 16384


def torch_files() -> list[Path]:
    """Return the files of the real cases that torch.save wrote."""
    return [path for path in sorted(real.CASES.rglob("*")) if path.suffix in (".pt", ".bin", ".ckpt") and path.is_file()]


def pickles() -> Iterator[bytes]:
    """The index of every real file, and Python's own protocols."""
    for path in torch_files():
        with contextlib.suppress(OstateError):
            archive = ZipIndex(str(path))
            (name,) = (name for name in archive.members if name.endswith("data.pkl"))
            yield archive.read(name, 1 << 24)
    for protocol in range(6):
        yield pickle.dumps(
            {"state": {0: {"step": 1.5, "b": b"x", "l": [1, (2, 3), {4}, None, True, -1, 1 << 40]}}, "param_groups": [{"lr": 1e-3}]}, protocol
        )


def archives() -> Iterator[bytes]:
    """Small files of both of torch's formats."""
    folder = CORPUS / "made"
    folder.mkdir(parents=True, exist_ok=True)
    entry = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
    for number, value in enumerate(({}, {"state": {0: entry}, "param_groups": [{"lr": 0.1, "params": [0]}]}, torch.ones(3, 2).t())):
        for zipped in (True, False):
            path = folder / f"{number}{zipped}"
            torch.save(value, path, _use_new_zipfile_serialization=zipped)
            yield path.read_bytes()
    yield from (path.read_bytes() for path in torch_files() if path.stat().st_size <= LARGEST)


def indexes() -> Iterator[bytes]:
    """Every `.metadata` of the real cases, and a small one."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        BytesStorageMetadata,
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    blob = CORPUS / "made" / "blob"
    torch.save(torch.ones(2), blob)
    length = blob.stat().st_size
    size = torch.Size([2])
    tensor = TensorStorageMetadata(TensorProperties(torch.float32), size, [ChunkStorageMetadata(torch.Size([0]), size)])
    described = {"optimizer.state.a.exp_avg": tensor, "optimizer.state.a.exp_avg_sq": tensor, "optimizer.param_groups.0.lr": BytesStorageMetadata()}
    places = {
        MetadataIndex(key, torch.Size([0]) if key.endswith(("avg", "sq")) else None, 0): _StorageInfo("__0_0.distcp", 0, length) for key in described
    }
    paths = {key: tuple(key.split(".")) for key in described}
    yield pickle.dumps(Metadata(described, paths, places))
    yield from (path.read_bytes() for path in sorted(real.CASES.rglob(".metadata")))


def heads() -> Iterator[bytes]:
    """The header of real safetensors files, with no more than a few bytes of tensors."""
    yield header.pack([header.Tensor("a", "F32", (2,), 0), header.Tensor("b", "BF16", (), 8)], "{}") + bytes(10)
    for text in ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', '{"__metadata__":{"format":"pt"}}', "{}"):
        yield len(text).to_bytes(8, "little") + text.encode() + bytes(4)
    yield from (path.read_bytes() for path in sorted(real.CASES.rglob("*.safetensors")) if path.stat().st_size <= LARGEST)


def manifests() -> Iterator[bytes]:
    """The manifest that ostate writes for one parameter."""
    from ostate.core.tensors import TensorRef

    path = CORPUS / "made" / "named.safetensors"
    source = CORPUS / "made" / "numbers"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_bytes(bytes(16))
    from ostate.core.tensors import Part

    slots = {name: TensorRef("F32", (2,), (Part(str(source), at, (2,), (1,), (0,)),)) for name, at in (("exp_avg", 0), ("exp_avg_sq", 8))}
    one = NamedParameter(name="a", shape=(2,), group=0, slots=slots, step=3.0, position=0, adapter_key="a", scalars={"x": float("nan")})
    ordering = Ordering(names=("a",), keys=("a",), source="given", verdict="unverified", rule="order file", undecided=("a",))
    group = Group(index=0, positions=(0,), hyper={"lr": 0.1, "betas": (0.9, 0.999)}, names=("a",))
    state = NamedState(optimizer="adamw", optimizer_class="torch.optim.AdamW", groups=(group,), parameters={"a": one}, ordering=ordering)
    write(state, str(path), force=True)
    (head,) = loading.open_heads(str(path))
    yield head.metadata["ostate"].encode()
    yield json.dumps({**json.loads(head.metadata["ostate"]), "ordering": None}).encode()


def configs() -> Iterator[bytes]:
    """Every adapter_config.json of the real cases."""
    yield from (path.read_bytes() for path in sorted(real.CASES.rglob("adapter_config.json")))


def small_files() -> Iterator[bytes]:
    """What lies beside the states of the real cases, one file after another."""
    for config in sorted(real.CASES.rglob("adapter_config.json")):
        beside = [config.parent / name for name in SMALL_FILES]
        yield PART.join(path.read_bytes() if path.is_file() else b"" for path in beside)
    card = b"- PEFT 0.15.2\n- Transformers: 4.51.3\n"
    yield PART.join([b"{}", b'["a", "b"]', b'{"global_step": 5}', b'{"model_type": "llama"}', card, b"global_step5"])


def choices() -> Iterator[bytes]:
    """Bytes that stand for choices (`fuzz/values.py`): every one is as good as another."""
    chance = random.Random(0)
    for _ in range(200):
        yield chance.randbytes(chance.randrange(8, 40))


SEEDS = {
    "pickle": pickles, "zip": archives, "dcp": indexes, "safetensors": heads, "manifest": manifests, "config": configs, "beside": small_files,
    "dcp_values": choices, "zero": choices,
}  # fmt: skip


def main() -> None:
    """Write every seed under its digest."""
    for target, made in SEEDS.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        seeds = {hashlib.sha256(data).hexdigest()[:16]: data for data in made() if len(data) <= LARGEST}
        for name, data in seeds.items():
            (folder / name).write_bytes(data)
        print(f"{target}: {len(seeds)} seeds, {sum(map(len, seeds.values()))} bytes")


if __name__ == "__main__":
    main()
