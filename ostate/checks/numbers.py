"""Rules on what one pass over the numbers found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ostate.core.hyper import all_betas
from ostate.core.state import Finding, Hyper
from ostate.core.stream import side_by_side
from ostate.optimizers import OptimizerSpec
from ostate.optimizers.moments import SECOND_MOMENTS
from ostate.optimizers.slots import FIRST_BESIDE, MOMENT_SLOTS, SECOND_MOMENT_SLOTS

from .context import CheckedRow, plural, say

if TYPE_CHECKING:
    from ostate.core.stream import Summary
    from ostate.core.tensors import Slot

_SHORT = frozenset({"F16", "BF16"})
_DIVERGED = "the run diverged or the file is damaged: use an earlier checkpoint"


class Measured(NamedTuple):
    """One parameter's numbers."""

    row: CheckedRow
    slots: Mapping[str, Summary]
    unbounded: int = 0
    """Elements whose first moment is larger than Adam allows; counted only when both moments were read side by side."""
    unpaired: int = 0
    """Elements with a first moment and no second; 0 also when not counted."""


class MeasuredState(NamedTuple):
    """A state whose numbers were all read once."""

    rows: tuple[Measured, ...]
    spec: OptimizerSpec | None
    exact: bool = False
    """True when tiny and negative numbers and pairs of moments were counted too."""
    facts: Mapping[str, object] = MappingProxyType({})

    def second(self) -> Iterator[tuple[CheckedRow, str, Summary]]:
        """Yield every second moment."""
        for measured in self.rows:
            for slot, summary in measured.slots.items():
                if slot in SECOND_MOMENT_SLOTS:
                    yield measured.row, slot, summary


def values_not_finite(seen: MeasuredState) -> Iterator[Finding]:
    """A moment that is NaN or infinite spoils every step and every dot product it takes part in."""
    bad = [(one.row, sum(s.nan for s in one.slots.values()), sum(s.inf for s in one.slots.values())) for one in seen.rows]
    bad = [row for row in bad if row[1] + row[2]]
    if bad:
        nan, inf = sum(row[1] for row in bad), sum(row[2] for row in bad)
        text = f"{nan} NaN and {inf} infinite values in the moments of {plural(len(bad), 'parameter')}"
        yield say("error", text, _DIVERGED, [row for row, _, _ in bad])


def second_moment_is_negative(seen: MeasuredState) -> Iterator[Finding]:
    """V is a running mean of squares, so v >= 0 everywhere (Kingma & Ba 2015, Algorithm 1)."""
    rows = [(row, summary.low) for row, _, summary in seen.second() if summary.low < 0]
    if rows:
        low = min(value for _, value in rows)
        yield say("error", f"second moments below zero in {plural(len(rows), 'parameter')}, down to {low:.3g}", _DIVERGED, [row for row, _ in rows])


def state_is_cold(seen: MeasuredState) -> Iterator[Finding]:
    """Moments that are zero everywhere were made by a save or a load that invented them: no gradient ever reached them.

    torch.distributed.checkpoint takes a step with zero gradients when it is asked for the state of an optimizer that never stepped.
    """
    judged = [one for one in seen.rows if _moments(one)]
    if judged and all(_all_zero(one) for one in judged):
        yield say(
            "error",
            f"every moment of all {len(judged)} parameters is zero: an untrained or invented state",
            "use a checkpoint saved after training steps",
        )


def _moments(one: Measured) -> list[str]:
    return [slot for slot in one.slots if slot in MOMENT_SLOTS]


def _all_zero(one: Measured) -> bool:
    return all(one.slots[slot].zeros == one.slots[slot].elements for slot in _moments(one))


def parameters_never_moved(seen: MeasuredState) -> Iterator[Finding]:
    """Moments that are zero for one parameter alone: no gradient reached it. After one step that is so for every lora_A, because B is zero."""
    cold = [one.row for one in seen.rows if _moments(one) and _all_zero(one)]
    if not cold or len(cold) == len([one for one in seen.rows if _moments(one)]):
        return
    early = all(row.step is not None and row.step <= 1 for row in cold)
    text = f"all moments of {plural(len(cold), 'parameter')} are zero: no gradient ever reached them"
    yield say("note", text + (" (after one step that is so for lora_A)" if early else ""), "the preconditioner leaves them as they are", cold)


def second_moment_is_a_copy(seen: MeasuredState) -> Iterator[Finding]:
    """exp_avg equal to exp_avg_sq is a known defect of FSDP's full state dict saved from CPU: one buffer was used for both.

    The same range is no copy: 8-bit codes have few values, and two tensors of the same ones in another order share all that one pass sees.
    """
    same = []
    for one in seen.rows:
        for second, first in FIRST_BESIDE.items():
            v, m = one.slots.get(second), one.slots.get(first)
            alike = v is not None and m is not None and v.prints == m.prints and v.zeros < v.elements
            if alike and _equal(one.row.entry.slots[second], one.row.entry.slots[first]):
                same.append(one.row)
    if same:
        yield say(
            "error",
            f"exp_avg and exp_avg_sq of {plural(len(same), 'parameter')} are the same numbers",
            "the second moment is lost: use another checkpoint",
            same,
        )


def parameters_are_copies(seen: MeasuredState) -> Iterator[Finding]:
    """Two matrices never see the same gradients step after step: where all moments agree bit for bit, one was written over the other.

    The numbers of the one that was overwritten are lost, so no name for its position is right. Vectors may be equal by right: two biases of one sum.
    Columns too, where few bits are kept: scales of queries and of keys (IA3, BOFT) enter one product, and have the same gradients but for rounding.
    """
    known: dict[tuple[object, ...], list[Measured]] = {}
    same: list[list[CheckedRow]] = []
    for one in seen.rows:
        moments = _moments(one)
        if not moments or may_be_equal(one.row.entry.slots[moments[0]]) or any(one.slots[slot].low == one.slots[slot].high for slot in moments):
            continue
        alike = known.setdefault(tuple((slot, one.slots[slot].prints) for slot in moments), [])
        same += [[other.row, one.row] for other in alike if all(_equal(other.row.entry.slots[slot], one.row.entry.slots[slot]) for slot in moments)]
        alike.append(one)
    yield from written_over(same)


def may_be_equal(moment: Slot) -> bool:
    """True where training itself may give two parameters the same moments: see `parameters_are_copies`."""
    few_bits = moment.encoding != "plain" or moment.dtype in _SHORT
    return len(moment.shape) < 2 or (few_bits and all(size == 1 for size in moment.shape[1:]))


def written_over(same: Sequence[Sequence[CheckedRow]]) -> Iterator[Finding]:
    """Say of each set of rows with the same moments that all but one were lost."""
    if same:
        lost = sum(len(rows) - 1 for rows in same)
        yield say(
            "error",
            f"the moments of {plural(lost, 'parameter')} are those of another one, bit for bit: they were overwritten",
            "the file was assembled wrongly: use the one that the training wrote",
            list({row.label: row for rows in same for row in rows}.values()),
        )


def _equal(ours: Slot, theirs: Slot) -> bool:
    """Read both again, in pieces; True where every number is the same."""
    return ours.shape == theirs.shape and all(bool((a == b).all()) for a, b in side_by_side(ours.chunks(), theirs.chunks()))


def second_moment_is_zero_where_the_first_is_not(seen: MeasuredState) -> Iterator[Finding]:
    """Where v is zero and m is not, an update is m / eps: rounding to few bits, or underflow, ate the second moment."""
    lost = []
    count = total = 0
    for one in seen.rows:
        m, v = one.slots.get("exp_avg"), one.slots.get("exp_avg_sq")
        if m is None or v is None or m.elements != v.elements:
            continue
        missing = max(one.unpaired, v.zeros - m.zeros)
        total += v.elements
        if missing > 0:
            lost.append(one.row)
            count += missing
    if lost:
        share = count / total
        text = f"v is zero where m is not for at least {count} of {total} elements ({plural(len(lost), 'parameter')})"
        yield say(
            "warning" if share > 1e-3 else "note",
            text,
            'the preconditioner does not scale such elements by 1/eps (fallback="identity" or "zero")',
            lost,
        )


def second_moment_is_below_eps(seen: MeasuredState) -> Iterator[Finding]:
    """Where sqrt(v) is far below eps, eps alone is the denominator: the preconditioner is a constant there, not Adam's."""
    if not seen.exact:
        return
    tiny = sum(summary.tiny or 0 for _, slot, summary in seen.second() if slot == "exp_avg_sq")
    total = sum(summary.elements for _, slot, summary in seen.second() if slot == "exp_avg_sq")
    if total and tiny > 0.01 * total:
        yield say("note", f"sqrt(v) is below eps for {tiny / total:.1%} of the elements: there the denominator is mostly eps")


def first_moment_is_out_of_bounds(seen: MeasuredState) -> Iterator[Finding]:
    """Running means of g and g**2 obey |m| <= (1-b1) / sqrt((1-b2)(1-b1^2/b2)) sqrt(v) by Cauchy and Schwarz, where b1^2 < b2.

    A state that breaks it has moments of two parameters, or betas that are not those it was trained with.
    """
    if seen.spec is None or not SECOND_MOMENTS[seen.spec.moment].plain_means or seen.spec.caution:
        return
    rows = [one.row for one in seen.rows if _breaks_bound(one)]
    if rows:
        text = f"m is larger than Adam's v allows in {plural(len(rows), 'parameter')}"
        why = "the two moments are not of one parameter, or the betas are not those of the training"
        if seen.spec.assumed:
            why = "the optimizer is not Adam: ADOPT and LaProp divide the gradient before they average it"
        yield say("warning", text, why, rows)


def bound(hyper: Hyper) -> float | None:
    """Return the largest |m| / sqrt(v) that Adam can reach with these betas; None: unknown or unbounded."""
    b1, b2 = (*all_betas(hyper), None, None)[:2]
    if b1 is None or b2 is None or not (0 <= b1 < 1 and 0 <= b2 < 1):
        return None
    return (1 - b1) / math.sqrt((1 - b2) * (1 - b1 * b1 / b2)) if b1 * b1 < b2 else None


def _breaks_bound(one: Measured) -> bool:
    m, v, limit = one.slots.get("exp_avg"), one.slots.get("exp_avg_sq"), bound(one.row.hyper)
    if m is None or v is None or limit is None or v.low < 0 or m.bad or v.bad or not exact_moments(one):
        return False
    return one.unbounded > 0 or m.largest > limit * math.sqrt(v.high) * 1.01 + UNDERFLOW


UNDERFLOW = 1e-18
"""Below this g**2 leaves float32, so m may stand beside a v of zero."""


def exact_moments(one: Measured) -> bool:
    """True when both moments are plain float32 or float64: rounding to few bits breaks the bound by itself."""
    slots = one.row.entry.slots
    return all(slot in slots and slots[slot].encoding == "plain" and slots[slot].dtype in {"F32", "F64"} for slot in ("exp_avg", "exp_avg_sq"))


def values_look_like_codes(seen: MeasuredState) -> Iterator[Finding]:
    """Whole numbers from 0 to 255 in a moment are the codes of an 8-bit optimizer, copied without their table and scales."""
    rows = [row for row, _, summary in seen.second() if summary.whole]
    if rows:
        yield say(
            "error",
            f"the second moment of {plural(len(rows), 'parameter')} holds whole numbers up to 255: 8-bit codes",
            "decode from the original file",
            rows,
        )


def moments_are_constant(seen: MeasuredState) -> Iterator[Finding]:
    """A second moment that is one number all over a matrix was filled in, not learned."""
    wide = [(row, s) for row, slot, s in seen.second() if slot in {"exp_avg_sq", "square_avg"} and s.elements > 1 and s.zeros < s.elements]
    flat = [row for row, s in wide if s.low == s.high and not s.bad]
    if flat:
        yield say(
            "warning",
            f"v is one constant in all of {plural(len(flat), 'parameter')}",
            "written by a dummy step or an initialisation: use a trained state",
            flat,
        )


NUMBERS: tuple[Callable[[MeasuredState], Iterator[Finding]], ...] = (
    values_not_finite,
    second_moment_is_negative,
    state_is_cold,
    parameters_never_moved,
    second_moment_is_a_copy,
    parameters_are_copies,
    second_moment_is_zero_where_the_first_is_not,
    second_moment_is_below_eps,
    first_moment_is_out_of_bounds,
    values_look_like_codes,
    moments_are_constant,
)
"""Rules on one pass over the """
