"""Master weights as a witness: a state that keeps them has cut them like its moments, so what equals the adapter names the position.

DeepSpeed's ZeRO keeps the fp32 weights beside exp_avg and exp_avg_sq in buffers of the same cut
(deepspeed/runtime/zero/stage_1_and_2.py, `single_partition_of_fp32_groups`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ostate.model import Adapter, Evidence, RawState

if TYPE_CHECKING:
    import numpy as np

TEST = "master weights"
_RELATIVE = 2.0**-7
"""The adapter may hold the masters rounded to bfloat16, which keeps 8 bits."""
_ABSOLUTE = 1e-6
_FEWEST = 8
"""Numbers above `_ABSOLUTE` that must agree: a tensor of zeros equals any other one."""


def with_masters(evidence: Evidence, keys: Sequence[str | None], raw: RawState, adapter: Adapter) -> Evidence:
    """Add to what the moments say of an order what the master weights say of it.

    Agreement in all of at least eight numbers, with no second tensor of the shape agreeing too, proves a position. A position that
    disagrees under its own name and agrees under another contradicts. Masters that agree nowhere (an adapter of another step) are silent.
    """
    agrees = {position: _agreeing(position, raw, adapter) for position in raw.master if raw.entries[position].has_state}
    proven = {position for position, found in agrees.items() if found == [keys[position]]}
    against = tuple(
        (position, key, found[0]) for position, found in agrees.items() if (key := keys[position]) is not None and found and key not in found
    )
    if not proven and not against:
        why = "they equal no tensor of this adapter: another step, or not trained yet"
        return replace(evidence, silent={**evidence.silent, TEST: why}) if raw.master else evidence
    contradictions = evidence.contradictions + against
    return replace(
        evidence,
        verdict="contradicted" if contradictions else "verified",
        proven=evidence.proven | proven,
        undecided=tuple(position for position in evidence.undecided if position not in proven),
        contradictions=contradictions,
        foreign=evidence.foreign and not proven,
        used=(*evidence.used, TEST),
    )


def _agreeing(position: int, raw: RawState, adapter: Adapter) -> list[str]:
    import numpy as np

    master = np.asarray(raw.master[position].read(), np.float32).reshape(-1)
    if np.count_nonzero(np.abs(master) > _ABSOLUTE) < _FEWEST:
        return []
    return [key for key, ref in adapter.tensors.items() if ref.numel == master.size and _equal(master, ref.read().reshape(-1))]


def _equal(master: np.ndarray, weight: np.ndarray) -> bool:
    import numpy as np

    first = slice(0, 64)  # most pairs differ at once
    return all(bool(np.all(np.abs(master[part] - weight[part]) <= _ABSOLUTE + _RELATIVE * np.abs(weight[part]))) for part in (first, slice(None)))
