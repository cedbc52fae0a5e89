"""Names from master weights: a state lays them out as its moments, so a position whose master weights equal a tensor has its name.

DeepSpeed's ZeRO keeps the fp32 weights beside exp_avg and exp_avg_sq in buffers of the same cut
(deepspeed/runtime/zero/stage_1_and_2.py, `single_partition_of_fp32_groups`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ostate.core.master_weights import ABSOLUTE, FIRST, close
from ostate.core.naming import Adapter, Evidence
from ostate.core.state import RawState
from ostate.core.tensors import Slot

from .tables.stream_rows import Rows

TEST = "master weights"
_STRIP = 1 << 17
_FEWEST = 8
"""Numbers above `ABSOLUTE` that must agree: a tensor of zeros equals any other one."""


def with_master_weights(evidence: Evidence, keys: Sequence[str | None], raw: RawState, adapter: Adapter) -> Evidence:
    """Return the evidence joined with what the master weights say of the order.

    Agreement in all of at least eight numbers, with no second tensor of the shape agreeing too, proves a position: all three buffers are cut
    alike. The moments are asked all the same, and outrank the master weights: where they prefer another name, or contradict, nothing is proven, since
    master weights may be read anew from the model while moments are kept. A position whose master weights disagree under its own name and agree under
    another contradicts. Masters that agree nowhere (an adapter of another step) are silent.
    """
    heads = {key: _head(ref) for key, ref in adapter.tensors.items()} if raw.master else {}
    agrees = {position: _agreeing(position, raw, adapter, heads) for position in raw.master if raw.entries[position].has_state}
    proven = {p for p, found in agrees.items() if found == [keys[p]] and (not evidence.order or evidence.order[p] in (None, keys[p]))}
    against = tuple(
        (position, key, found[0]) for position, found in agrees.items() if (key := keys[position]) is not None and found and key not in found
    )
    if not proven and not against:
        why = "they equal no tensor of this adapter: it is of another step, or not trained yet"
        return replace(evidence, silent={**evidence.silent, TEST: why}) if raw.master else evidence
    contradictions = evidence.contradictions + against
    return replace(
        evidence,
        verdict="contradicted" if contradictions else "verified",
        proven=evidence.proven | proven,
        undecided=tuple(position for position in evidence.undecided if position not in proven),
        contradictions=contradictions,
        other_run=evidence.other_run and not proven,
        used=(*evidence.used, TEST),
    )


def _agreeing(position: int, raw: RawState, adapter: Adapter, heads: Mapping[str, np.ndarray]) -> list[str]:
    """Return the keys whose tensors equal the master weights of a position. All are read a strip at a time, and only as long as they do."""
    master = raw.master[position]
    size, head = math.prod(master.shape), _head(master)
    weights = {key: Rows(ref, 1, strip=_STRIP) for key, ref in adapter.tensors.items() if ref.numel == size and _alike(head, heads[key])}
    large, master_rows = 0, Rows(master, 1, strip=_STRIP)
    for at in range(0, size, _STRIP):
        if not weights:
            break
        values = master_rows.take(min(_STRIP, size - at)).reshape(-1)
        large += int(np.count_nonzero(np.abs(values) > ABSOLUTE))
        weights = {key: rows for key, rows in weights.items() if _alike(values, rows.take(len(values)).reshape(-1)) and rows.finite}
    return list(weights) if large >= _FEWEST and master_rows.finite else []


def _head(slot: Slot) -> np.ndarray:
    """Return the first numbers, by which most pairs differ."""
    return np.asarray(next(iter(slot.chunks(FIRST)), ()), np.float32).reshape(-1)[:FIRST]


def _alike(master: np.ndarray, weight: np.ndarray) -> bool:
    """True when as many numbers as both have are equal; the first chunk of a tensor may end where its file does."""
    count = min(len(master), len(weight))
    master, weight = master[:count], weight[:count]
    return bool(np.all(close(master, weight)))
