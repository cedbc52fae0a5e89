"""An adapter file that holds more of each tensor than was trained: cut to what the state's positions are of.

PEFT converts a PiSSA or OLoRA adapter to a plain one of rank 2r: the trained factors, beside them the ones it started from
(peft/peft_model.py, `save_mutated_as_lora`). A vocabulary may have been resized after training: the first rows are the trained ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from ostate.core.adapter_config import AdapterConfig
from ostate.core.names import factor_of
from ostate.core.naming import Adapter
from ostate.core.state import RawState
from ostate.core.tensors import TensorRef

Shape = tuple[int, ...]
FITTED = "fitted"
"""Key of `Adapter.facts`: a sentence on what was cut."""
SCALED = "scaled"
"""Key of `Adapter.facts`: a sentence on tensors that were not trained as they stand in the file."""
_SCALED = re.compile(r"\.(?:lora_up\.weight|hada_w1_a|lokr_w1(?:_a)?)$")
"""What LyCORIS multiplies by a module's scalar when it saves (lycoris/modules/*.py, `custom_state_dict`)."""


def fitted(adapter: Adapter, raw: RawState) -> Adapter:
    """Return the adapter with its tensors cut to the state's shapes where it was converted or resized after training, else the adapter itself."""
    there = Counter(entry.shape for entry in raw.entries if entry.has_state and entry.shape is not None and not entry.flat)
    scaled = sum(_SCALED.search(key) is not None for key in adapter.tensors)
    if there[()] and there[()] == scaled and not any(key.endswith(".scalar") for key in adapter.tensors):
        text = f"{there[()]} scalars were trained (LyCORIS, use_scalar), and the file holds factors times them"
        return replace(adapter, facts={**adapter.facts, SCALED: text})
    held = Counter(ref.shape for ref in adapter.tensors.values())
    if not there - held:
        return adapter
    halved = _halved(adapter)
    if halved is not None and _has_room(halved, there):
        return halved
    resized = _resized(adapter, dict(there - held), dict(held - there))
    return adapter if resized is None or there - Counter(ref.shape for ref in resized.tensors.values()) else resized


def _has_room(halved: Adapter, there: Counter[Shape]) -> bool:
    """True when each position finds its tensor, or each tensor its position: PEFT leaves `modules_to_save` out of an adapter that it converts."""
    held = Counter(ref.shape for ref in halved.tensors.values())
    return not there - held or not held - there


def _halved(adapter: Adapter) -> Adapter | None:
    """Return the first half of every factor's ranks; None where there is no factor, or one that cannot be halved."""
    cut: dict[str, TensorRef] = {}
    for key, ref in adapter.tensors.items():
        factor = factor_of(key)
        axis = {"A": 0, "B": 1, "embedding_A": 0, "embedding_B": 1}.get(factor[1]) if factor is not None else None
        half = ref if axis is None else _leading(ref, axis, ref.shape[axis] // 2) if len(ref.shape) > axis and not ref.shape[axis] % 2 else None
        if half is None:
            return None
        cut[key] = half
    if all(half is adapter.tensors[key] for key, half in cut.items()):
        return None
    rank, ranks = adapter.config.get("r"), adapter.config.get("rank_pattern")
    config: AdapterConfig = {**adapter.config, "init_lora_weights": "pissa"}
    if rank is not None:
        config["r"] = rank // 2
    if ranks is not None:
        config["rank_pattern"] = {module: own // 2 if isinstance(own, int) else own for module, own in ranks.items()}
    text = f"{adapter.file} has twice the rank of the state: converted from PiSSA or its like, and compared by its first half, the trained factors"
    return replace(adapter, tensors=cut, config=config, facts={**adapter.facts, FITTED: text})


def _resized(adapter: Adapter, wanted: Mapping[Shape, int], spare: Mapping[Shape, int]) -> Adapter | None:
    """Return the first rows of what depends on the vocabulary, where one change of one size explains every shape that does not fit."""
    pairs = {shape: [other for other in spare if _axis(shape, other) is not None] for shape in wanted}
    if any(len(others) != 1 or spare[others[0]] != wanted[shape] for shape, others in pairs.items()):
        return None
    changes = {(shape[axis], other[axis]) for shape, (other,) in pairs.items() if (axis := _axis(shape, other)) is not None}
    if len(changes) != 1 or next(iter(changes))[0] > next(iter(changes))[1]:
        return None
    back = {other: shape for shape, (other,) in pairs.items()}
    cut: dict[str, TensorRef] = {}
    for key, ref in adapter.tensors.items():
        shape = back.get(ref.shape)
        axis = _axis(shape, ref.shape) if shape is not None else None
        part = ref if shape is None or axis is None else _leading(ref, axis, shape[axis])
        if part is None:
            return None
        cut[key] = part
    ((trained, saved),) = changes
    text = f"{adapter.file} has {saved} rows where {trained} were trained: a vocabulary that was resized later; the first {trained} are compared"
    return replace(adapter, tensors=cut, facts={**adapter.facts, FITTED: text})


def _axis(one: Shape, other: Shape) -> int | None:
    """Return the only axis in which two shapes differ, or None."""
    differ = [axis for axis, (left, right) in enumerate(zip(one, other)) if left != right]
    return differ[0] if len(one) == len(other) and len(differ) == 1 else None


def _leading(ref: TensorRef, axis: int, count: int) -> TensorRef | None:
    """Return the first `count` along an axis, or None for a tensor that lies in several pieces."""
    part = ref.parts[0] if len(ref.parts) == 1 else None
    if part is None or part.sizes != ref.shape:
        return None
    sizes = tuple(count if at == axis else size for at, size in enumerate(part.sizes))
    return ref._replace(shape=sizes, parts=(part._replace(sizes=sizes),), crc32=None)
