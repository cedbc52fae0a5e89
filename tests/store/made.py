"""A real AdamW's state, its numbers laid into a plain file, as a `NamedState`."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ostate.core.naming import NamedParameter, NamedState, Ordering
from ostate.core.state import Group
from ostate.core.tensors import Part, TensorRef

if TYPE_CHECKING:
    import torch

SHAPES = {
    "base_model.model.layers.0.q_proj.lora_A.default.weight": (3, 40),
    "base_model.model.layers.0.q_proj.lora_B.default.weight": (24, 3),
    "base_model.model.layers.0.ünïcode.bias": (7,),
    "base_model.model.score.scale": (),
}


def trained(seed: int = 0, steps: int = 5) -> tuple[list[torch.nn.Parameter], torch.optim.AdamW]:
    """Return parameters of `SHAPES` and the AdamW that moved them; two groups."""
    import torch  # a child process that only writes does without

    torch.manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES.values()]
    groups = [{"params": parameters[:2], "weight_decay": 0.01}, {"params": parameters[2:], "weight_decay": 0.0, "lr": 5e-4}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-7)
    for _ in range(steps):
        optimizer.zero_grad()
        sum((p * torch.randn_like(p)).sum() for p in parameters).backward()
        optimizer.step()
    return parameters, optimizer


def laid_out(folder: Path, optimizer: torch.optim.Optimizer, *, digests: bool = True, name: str = "source.bin") -> NamedState:
    """Write the moments into one file with odd gaps and return the named state that points into it."""
    at, raw, parameters = 0, b"", {}
    state, groups = optimizer.state_dict()["state"], optimizer.param_groups
    group_of = [index for index, group in enumerate(groups) for _ in group["params"]]
    for position, (parameter, shape) in enumerate(SHAPES.items()):
        slots = {}
        for slot in ("exp_avg", "exp_avg_sq"):
            piece = np.ascontiguousarray(state[position][slot].numpy()).tobytes()
            raw += b"\xaa" * 13
            at = len(raw)
            raw += piece
            strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
            part = Part(str(folder / name), at, shape, strides, (0,) * len(shape))
            slots[slot] = TensorRef("F32", shape, (part,), crc32=zlib.crc32(piece) if digests else None)
        parameters[parameter] = NamedParameter(
            name=parameter,
            shape=shape,
            group=group_of[position],
            slots=slots,
            step=float(state[position]["step"]),
            position=position,
            adapter_key=parameter.replace(".default", ""),
        )
    (folder / name).write_bytes(raw)
    hyper = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    names = list(SHAPES)
    return NamedState(
        optimizer="adamw",
        optimizer_class="torch.optim.AdamW",
        groups=(
            Group(index=0, positions=(0, 1), hyper=hyper[0], names=tuple(names[:2])),
            Group(index=1, positions=(2, 3), hyper=hyper[1], names=tuple(names[2:])),
        ),
        parameters=parameters,
        ordering=Ordering(
            names=tuple(names),
            keys=tuple(p.adapter_key for p in parameters.values()),
            source="skeleton",
            rule="trainer",
            verdict="verified",
            margin=4.5,
            rejected=({"source": "convention", "rule": "x", "reason": "shapes"},),
        ),
        adapter={"name": "default", "peft_type": "LORA", "r": 3, "base_model": None, "file": "adapter_model.safetensors", "sha256": "0" * 64},
        source={"layout": "torch", "files": ({"name": "optimizer.pt", "size": 1, "index_sha256": "ab"},)},
    )


def big(folder: Path) -> NamedState:
    """Return a state of 4 parameters whose numbers, 16 MB, lie in a file that is there already, or is made now."""
    file = folder / "big.bin"
    size = 1 << 19
    if not file.exists():
        np.random.default_rng(0).random(8 * size, np.float32).tofile(file)
    parameters = {}
    for row, name in enumerate(SHAPES):
        refs = [TensorRef("F32", (size,), (Part(str(file), (2 * row + k) * size * 4, (size,), (1,), (0,)),)) for k in (0, 1)]
        slots = {"exp_avg": refs[0], "exp_avg_sq": refs[1]}
        parameters[name] = NamedParameter(name=name, shape=(size,), group=0, slots=slots, step=5.0, position=row)
    group = Group(index=0, positions=(0, 1, 2, 3), hyper={"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}, names=tuple(SHAPES))
    return NamedState(optimizer="adamw", optimizer_class="torch.optim.AdamW", groups=(group,), parameters=parameters)
