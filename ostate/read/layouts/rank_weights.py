"""The model's own weights beside a state that each process saved for itself: `model_world_size_8_rank_0.pt` beside `optim_world_size_8_rank_0.pt`.

verl writes the pair (verl/utils/checkpoint/fsdp_checkpoint_manager.py): FSDP2's DTensors and FSDP1's ShardedTensors by their live names, in the
order of the model. They name the positions, and tell how long each FSDP1 FlatParameter is without its padding.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping

from ostate.core.tensors import TensorRef
from ostate.errors import ReadError

from ..container.torchsave import load
from ..rank_files import RANK_FILE, refuse_another_rank
from .fsdp_shards import ALLOWED, is_sharded, whole

Family = tuple[str, str, str]
"""What a file's name is before the rank, after it, and its extension."""
_OPTIMIZER = re.compile(r"optim(?:izer)?")
_TUNER = re.compile(r"lora_|lokr_|hada_|modules_to_save|ia3_l|oft_|boft_|vera_lambda")


def model_family(family: Family, known: Mapping[Family, Mapping[int, str]]) -> Mapping[int, str]:
    """Return rank -> file of the weights that go with an optimizer's files: the same name with `model` in it; nothing where there are none."""
    head, tail, kind = family
    return known.get((_OPTIMIZER.sub("model", head), tail, kind), {}) if _OPTIMIZER.search(head) else {}


def weights_of(folder: str, by_rank: Mapping[int, str]) -> dict[str, TensorRef]:
    """Return the model's weights by live name, in the model's order, each put together from the processes' shares.

    Raises:
        ReadError: a process's share does not fit the others'.
        MissingRank: a share counts more processes than there are files.
    """
    shares = []
    for rank in sorted(by_rank):
        path = os.path.join(folder, by_rank[rank])
        stored = load(path, allowed=ALLOWED)
        refuse_another_rank(stored.saved_as, path, RANK_FILE)
        value = stored.value
        if not isinstance(value, Mapping):
            raise ReadError("not a model's state dict", where=path, fix="copy the whole folder again, with the files of every process")
        shares.append((path, value))
    found = {}
    for name, value in shares[0][1].items():
        if isinstance(name, str) and (ref := _whole(name, value, shares)) is not None:
            found[name] = ref
    return found


def _whole(name: str, value: object, shares: list[tuple[str, Mapping[object, object]]]) -> TensorRef | None:
    if not is_sharded(value):
        return value if isinstance(value, TensorRef) else None
    parts = [(path, other) for path, held in shares if is_sharded(other := held.get(name))]
    return whole(parts, f"weight {name}")


def trained(weights: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """Return the weights of a tuner, where there are any, else all."""
    return {name: ref for name, ref in weights.items() if _TUNER.search(name)} or dict(weights)


def lengths(weights: Mapping[str, TensorRef], padded: list[int], processes: int) -> dict[int, int]:
    """Return the number of elements of each FlatParameter by its padded length.

    FSDP1 pads one FlatParameter to a multiple of the number of processes (torch/distributed/fsdp/_flat_param.py). Where each holds one weight,
    the padded lengths are those of the weights.

    Args:
        weights: the trained weights.
        padded: what the processes hold of each entry with state, together.
        processes: how many they are.

    Returns:
        Nothing where the lengths are not those of the weights, or where two weights of different lengths are padded to one.
    """
    sizes = [math.prod(ref.shape) for ref in weights.values()]
    rounded = [-(-size // processes) * processes for size in sizes]
    found = dict(zip(rounded, sizes))
    consistent = sorted(rounded) == sorted(padded) and all(found[up] == size for up, size in zip(rounded, sizes))
    return found if consistent else {}
