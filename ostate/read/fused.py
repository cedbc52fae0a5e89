"""LoRA pairs that a trainer joined when it saved: one pair in the file is several in the optimizer.

sd-scripts' `split_qkv` trains a pair for each of q, k and v of a fused layer (and for the feed-forward of a single block), as `lora_down.0`,
`lora_down.1`, …, and saves the downs one below the other, (k r, n), and the ups along a block diagonal, (m, k r) (networks/lora_flux.py:1090-1140).

DyLoRA trains a pair for each rank, or for each few, and saves the downs one below the other, (k b, n), and the ups side by side, (m, k b):
sd-scripts as `lora_A.0`, …, `lora_B.0`, … (networks/dylora.py), LyCORIS as `up_list.0`, …, `down_list.0`, … (lycoris/modules/dylora.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ostate.core.naming import Adapter
from ostate.core.state import RawState
from ostate.core.tensors import ITEMSIZE, Part, TensorRef

from .made_keys import with_made_keys

DOWN, UP = ".lora_down.weight", ".lora_up.weight"
MOST_BLOCKS = 4
"""q, k, v and the feed-forward's first layer."""
Blocks = dict[str, TensorRef]
"""What follows the module's path in a live name -> the tensor."""


def divided(adapter: Adapter, raw: RawState) -> Adapter:
    """Return the adapter with the joined pairs as the optimizer had them, where the state lacks their shapes and has those of the blocks.

    Reads the `lora_up` of pairs that may be a block diagonal, and no other tensor.
    """
    held = Counter(entry.shape for entry in raw.entries if entry.shape is not None)
    wanted = Counter(ref.shape for ref in adapter.tensors.values())
    parts: dict[str, Blocks] = {}
    said: dict[str, None] = {}
    for key, ref in adapter.tensors.items():
        stem = key.removesuffix(DOWN)
        up = adapter.tensors.get(stem + UP) if key.endswith(DOWN) else None
        if up is None or len(ref.shape) < 2 or held[ref.shape] >= wanted[ref.shape]:
            continue
        for program, blocks in (("sd-scripts' (split_qkv)", _diagonal(ref, up, held)), *_ranks(ref, up, held, raw)):
            if blocks:
                parts[stem] = blocks
                said.setdefault(program)
                break
    if not parts:
        return adapter
    tensors: dict[str, TensorRef] = {}
    for key, ref in adapter.tensors.items():
        stem = key.removesuffix(DOWN).removesuffix(UP)
        if stem == key or stem not in parts:
            tensors[key] = ref
        else:
            tensors.update({f"{stem}.{word}": block for word, block in parts[stem].items()})
    first = next(iter(next(iter(parts.values()))))
    text = f"{len(parts)} pairs of the file are several of the optimizer: their names, {first} and so on, are {' or '.join(said)} and not the file's"
    return with_made_keys(adapter, tensors, text)


def _diagonal(down: TensorRef, up: TensorRef, held: Counter[tuple[int, ...]]) -> Blocks:
    """Return the blocks of split_qkv; nothing where `up` is no block diagonal of blocks that the state has."""
    if len(down.shape) != 2 or len(up.shape) != 2 or up.shape[1] != down.shape[0]:
        return {}
    width, rows = down.shape[0], up.shape[0]
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
            return _listed("lora_down.{}.weight", downs) | _listed("lora_up.{}.weight", ups)
    return {}


def _ranks(down: TensorRef, up: TensorRef, held: Counter[tuple[int, ...]], raw: RawState) -> list[tuple[str, Blocks]]:
    """Return the blocks of DyLoRA under the names of the program that wrote them: the first position of the state tells which factor comes first."""
    rank, rows = down.shape[0], up.shape[0]
    columns = down.numel // rank
    if up.numel != rows * rank:
        return []
    sizes = [size for size in range(1, rank) if rank % size == 0 and held[size, columns] and held[rows, size]]
    first = next((entry.shape for entry in raw.entries if entry.shape is not None), None)
    if len(sizes) != 1 or first is None:
        return []
    flat = [ref.with_shape(shape) for ref, shape in ((down, (rank, columns)), (up, (rows, rank)))]
    size, count = sizes[0], rank // sizes[0]
    downs = [_block(flat[0], (at * size, 0), (size, columns)) for at in range(count)]
    ups = [_block(flat[1], (0, at * size), (rows, size)) for at in range(count)]
    if first[0] == size:
        return [("sd-scripts' (DyLoRA)", _listed("lora_A.{}", downs) | _listed("lora_B.{}", ups))]
    return [("LyCORIS' (DyLoRA)", _listed("up_list.{}", ups) | _listed("down_list.{}", downs))]


def _listed(word: str, blocks: Sequence[TensorRef | None]) -> Blocks:
    return {word.format(at): block for at, block in enumerate(blocks) if block is not None}


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
