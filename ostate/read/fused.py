"""LoRA pairs that a trainer joined when it saved: one pair in the file is several in the optimizer.

sd-scripts' `split_qkv` trains a pair for each of q, k and v of a fused layer (and for the feed-forward of a single block), as `lora_down.0`,
`lora_down.1`, …, and saves the downs one below the other, (k r, n), and the ups along a block diagonal, (m, k r) (networks/lora_flux.py:1090-1140).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ostate.core.naming import Adapter
from ostate.core.state import RawState
from ostate.core.tensors import ITEMSIZE, Part, TensorRef

DOWN, UP = ".lora_down.weight", ".lora_up.weight"
MOST_BLOCKS = 4
"""q, k, v and the feed-forward's first layer."""


def divided(adapter: Adapter, raw: RawState) -> Adapter:
    """Return the adapter with the joined pairs as the optimizer had them, where the state lacks their shapes and has those of the blocks.

    Reads the `lora_up` of such pairs, and no other tensor.
    """
    held = Counter(entry.shape for entry in raw.entries if entry.shape is not None)
    wanted = Counter(ref.shape for ref in adapter.tensors.values())
    tensors: dict[str, TensorRef] = {}
    cut = 0
    for key, ref in adapter.tensors.items():
        stem = key.removesuffix(DOWN)
        up = adapter.tensors.get(stem + UP) if key.endswith(DOWN) else None
        if up is None or len(ref.shape) != 2 or len(up.shape) != 2 or held[ref.shape] >= wanted[ref.shape]:
            tensors.setdefault(key, ref)
            continue
        pieces = _pieces(ref, up, held)
        if not pieces:
            tensors.setdefault(key, ref)
            continue
        cut += 1
        for word, row in (("lora_down", 0), ("lora_up", 1)):
            for at, piece in enumerate(pieces):
                tensors[f"{stem}.{word}.{at}.weight"] = piece[row]
        tensors[stem + UP] = up
    if not cut:
        return adapter
    gone = {f"{key.rsplit('.lora_', 1)[0]}{UP}" for key in tensors if key.endswith(".lora_down.0.weight")}
    text = f"{cut} pairs of the file are several of the optimizer: their names, lora_down.0 and so on, are sd-scripts' (split_qkv) and not the file's"
    return replace(adapter, tensors={key: ref for key, ref in tensors.items() if key not in gone}, assumed=(*adapter.assumed, text))


def _pieces(down: TensorRef, up: TensorRef, held: Counter[tuple[int, ...]]) -> list[tuple[TensorRef, TensorRef]]:
    """Return the (down, up) of each block; nothing where `up` is no block diagonal of blocks that the state has."""
    width, rows = down.shape[0], up.shape[0]
    if up.shape[1] != width:
        return []
    for count in range(2, MOST_BLOCKS + 1):
        rank = width // count
        if width % count or not held[rank, down.shape[1]]:
            continue
        borders = _borders(up, count)
        if borders is None:
            continue
        spans = list(zip((0, *borders), (*borders, rows)))
        downs = [_block(down, (at * rank, 0), (rank, down.shape[1])) for at in range(count)]
        ups = [_block(up, (first, at * rank), (last - first, rank)) for at, (first, last) in enumerate(spans)]
        if all(one is not None and held[one.shape] for one in (*downs, *ups)):
            return [(one, other) for one, other in zip(downs, ups) if one is not None and other is not None]
    return []


def _borders(up: TensorRef, count: int) -> tuple[int, ...] | None:
    """Return where the blocks after the first begin; None where the columns of two blocks meet in a row, or a row is zero beside a border."""
    import numpy as np

    blocks = up.read().reshape(up.shape[0], count, -1)
    used = np.any(blocks != 0, axis=2)
    if not np.all(used.sum(axis=1) <= 1) or not np.all(used.any(axis=0)):
        return None
    owner = np.where(used.any(axis=1), used.argmax(axis=1), -1)
    firsts = [int(np.argmax(owner == at)) for at in range(count)]
    lasts = [len(owner) - int(np.argmax(owner[::-1] == at)) for at in range(count)]
    tiled = firsts[0] == 0 and lasts[-1] == len(owner) and all(last == first for last, first in zip(lasts, firsts[1:]))
    return tuple(firsts[1:]) if tiled else None


def _block(ref: TensorRef, start: Sequence[int], sizes: tuple[int, int]) -> TensorRef | None:
    """Return a block of a matrix as a tensor of its own; None where the matrix is not one run of bytes."""
    if ref.run is None:
        return None
    file, offset = ref.run
    columns = ref.shape[1]
    at = offset + (start[0] * columns + start[1]) * ITEMSIZE[ref.dtype]
    part = Part(file, at, sizes, (columns, 1), (0, 0))
    return TensorRef(dtype=ref.dtype, shape=sizes, parts=(part,))
