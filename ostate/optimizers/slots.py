"""The table of slots: what each tensor of an optimizer's entry is, and what its shape says of its parameter's.

Every question of this kind is answered here: which slots are second moments, which first moment stands beside one, which slots are
weights, which have their parameter's shape, which names tell by themselves that a mapping is an optimizer's state.
"""

# No `from __future__ import annotations`: a named tuple compiles each annotation that is text, on every start (docs/performance.md).

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

from .rows import OPTIMIZERS

Role = Literal["first_moment", "second_moment", "weights", "scale", "scalar", "other"]
"""What a slot is.

`first_moment` an average or a sum of gradients, linear in them; `second_moment` a mean, sum or maximum of squares or sizes of gradients,
never below zero; `weights` parameter values (fp32 master weights, an averaged or an initial point); `scale` a learning rate for each
element; `scalar` one number; `other` the rest.
"""

Shape = Literal["param", "flat", "row", "col", "row1", "col1", "block", "one", "other"]
"""How a slot's shape follows from its parameter's.

`param` the same; `flat` the same number of elements; `row` without the last axis; `col` without the one before it; `row1`, `col1`
the same with that axis kept as 1; `block` one number for a block of elements; `one` a single number; `other` says nothing of the parameter.
"""


class SlotSpec(NamedTuple):
    """What is known of one slot."""

    role: Role
    shape: Shape = "param"
    first: str = ""
    """The first moment beside this second moment."""
    power: int = 2
    """Of a second moment: its units are gradients to this power."""
    marks: Literal["anywhere", "below state", ""] = ""
    """Where the name alone tells an optimizer's state: in any mapping, below a key `state` only, or nowhere (models use such names too)."""


class HasSlots(Protocol):
    """An entry of a `RawState` or a parameter of a `NamedState`."""

    @property
    def slots(self) -> Mapping[str, object]:
        """Slot name -> slot."""
        ...


SLOTS: dict[str, SlotSpec] = {
    "exp_avg": SlotSpec("first_moment", marks="anywhere"),
    "exp_avg_sq": SlotSpec("second_moment", first="exp_avg", marks="anywhere"),
    "max_exp_avg_sq": SlotSpec("second_moment", first="exp_avg", marks="anywhere"),
    "exp_avg_sq_row": SlotSpec("second_moment", "row", first="exp_avg", marks="anywhere"),
    "exp_avg_sq_col": SlotSpec("second_moment", "col", first="exp_avg", marks="anywhere"),
    "exp_avg_slow": SlotSpec("first_moment", marks="anywhere"),
    "exp_avg_B": SlotSpec("first_moment", marks="anywhere"),
    "exp_avg_sq_B": SlotSpec("second_moment", first="exp_avg_B", marks="anywhere"),
    "exp_inf": SlotSpec("second_moment", first="exp_avg", power=1, marks="anywhere"),
    "square_avg": SlotSpec("second_moment", first="grad_avg", marks="anywhere"),
    "grad_avg": SlotSpec("first_moment", marks="anywhere"),
    "acc_delta": SlotSpec("other", marks="anywhere"),
    "momentum_buffer": SlotSpec("first_moment", marks="anywhere"),
    "sum": SlotSpec("second_moment", marks="below state"),
    "row_var": SlotSpec("second_moment", "row1", marks="anywhere"),
    "col_var": SlotSpec("second_moment", "col1", marks="anywhere"),
    "variance": SlotSpec("second_moment"),
    "exp_avg_res_row": SlotSpec("other", "row", marks="anywhere"),
    "exp_avg_res_col": SlotSpec("other", "col", marks="anywhere"),
    "m": SlotSpec("first_moment", "flat"),
    "v": SlotSpec("second_moment", first="m"),
    "vmean": SlotSpec("second_moment", "block", first="m"),
    "state1": SlotSpec("other", marks="anywhere"),
    "state2": SlotSpec("second_moment", marks="anywhere"),
    "grok_ema": SlotSpec("first_moment"),
    "exp_avg_var": SlotSpec("other"),
    "exp_avg_diff": SlotSpec("other"),
    **{slot: SlotSpec("other") for slot in ("prev", "prev_grad", "pre_grad", "neg_pre_grad", "previous_grad")},
    "alphak": SlotSpec("second_moment"),
    "sk": SlotSpec("other"),
    "lr_mask": SlotSpec("scale", marks="anywhere"),
    "mask": SlotSpec("other"),
    "last_polarity": SlotSpec("other"),
    "sign_history": SlotSpec("other", "other"),
    "step_size": SlotSpec("scale"),
    "z": SlotSpec("weights"),
    "ax": SlotSpec("weights"),
    "x0": SlotSpec("weights"),
    "la_param": SlotSpec("weights"),
    "p0": SlotSpec("weights", "other"),
    "s": SlotSpec("other", "other"),
    "compensation": SlotSpec("other"),
    "kahan_comp": SlotSpec("other"),
    "shift": SlotSpec("other"),
    "scaled_grad": SlotSpec("other", "other"),
    "GG": SlotSpec("other", "other"),
    "Q": SlotSpec("other", "other"),
    "step": SlotSpec("scalar", "one", marks="below state"),
    **{
        slot: SlotSpec("scalar", "one")
        for slot in (
            "RMS",
            "mu_product",
            "eta",
            "mu",
            "unorm_vec",
            "gnorm_vec",
            "eps_sq",
            "block_numel",
            "head_numel",
            "reduced",
            "avg_lr",
            "lr",
            "weight_norm",
            "adam_norm",
            "trust_ratio",
            "accumulated_decay",
            "m_norm_t",
            "v_norm_t",
            "m_max_t",
        )
    },
}
"""By the name that `formats.encodings.slots_of` gives; `GG.0`, an item of a list, has the row of `GG`.

`momentum_buffer` beside a second moment (RMSprop) is an average of steps, not of gradients; `first_moment` knows. bitsandbytes' `state1`
is one moment or another by the optimizer, so it says nothing by itself. A scalar is a number even where it is stored as a tensor.
"""

_UNKNOWN = SlotSpec("other", "other")


def row_of(slot: str) -> SlotSpec:
    """Return the row of a slot; a name that is not in the table is `other` and says nothing of its parameter's shape."""
    return SLOTS.get(slot) or SLOTS.get(slot.partition(".")[0], _UNKNOWN)


def with_role(*roles: Role) -> frozenset[str]:
    """Return the slots that have one of these roles."""
    return frozenset(slot for slot, row in SLOTS.items() if row.role in roles)


SECOND_MOMENT_SLOTS = with_role("second_moment")
"""Never below zero."""
MOMENT_SLOTS = with_role("first_moment", "second_moment")
FIRST_BESIDE: Mapping[str, str] = {slot: row.first for slot, row in SLOTS.items() if row.first and row.shape == "param"}
"""Second moment of the parameter's shape -> the first moment beside it."""
SINGLE_NUMBERS = with_role("scalar")
"""One number even where they are tensors."""
PARAM_SHAPED = frozenset(slot for slot, row in SLOTS.items() if row.shape == "param")
"""Slots whose shape is their parameter's."""
MARKS_ANYWHERE = tuple(slot for slot, row in SLOTS.items() if row.marks == "anywhere")
"""Names that tell an optimizer's state wherever they stand."""
MARKS_BELOW_STATE = tuple(slot for slot, row in SLOTS.items() if row.marks)
"""Names that tell it below a key `state`."""


def second_moment(entry: HasSlots) -> str | None:
    """Return the slot of the second moment that has one number for each element, in units grad**2; None: the entry keeps none.

    Of several the running mean comes before its maximum. Factored moments and Adamax's maximum of sizes are not such a slot.
    In which basis it lives is for the optimizer's row to say (`SECOND_MOMENTS`).
    """
    found = (slot for slot, row in SLOTS.items() if row.role == "second_moment" and row.shape == "param" and row.power == 2 and slot in entry.slots)
    return next(found, None)


def first_moment(entry: HasSlots, optimizer: str = "unknown") -> str | None:
    """Return the slot of the first moment, linear in the gradients; None: the entry keeps none.

    Beside a second moment it is the one that this optimizer keeps with it; alone (SGD, Lion), the only kind there is.

    Args:
        entry: what an optimizer kept for one parameter.
        optimizer: its row of `OPTIMIZERS`; those whose `exp_avg` is an average of divided gradients (ADOPT, CAME) keep none.
    """
    if optimizer in OPTIMIZERS and OPTIMIZERS[optimizer].averages == "steps":
        return None
    seconds = [SLOTS[slot].first for slot in SLOTS if SLOTS[slot].role == "second_moment" and slot in entry.slots]
    if seconds:
        return next((first for first in seconds if first and first in entry.slots), None)
    return next((slot for slot, row in SLOTS.items() if row.role == "first_moment" and slot in entry.slots), None)


def weights_slot(entry: HasSlots) -> str | None:
    """Return the slot that holds parameter values (schedule-free's z, Prodigy's p0, master weights), or None.

    Its shape may be smaller than the parameter's: Prodigy may keep every eleventh element only.
    """
    return next((slot for slot, row in SLOTS.items() if row.role == "weights" and slot in entry.slots), None)
