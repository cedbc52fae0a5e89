"""What is known of one optimizer: a row of `OPTIMIZERS`."""

# No `from __future__ import annotations`: a named tuple compiles each annotation that is text, on every start (docs/performance.md).

from collections.abc import Callable
from typing import Literal, NamedTuple

from ostate.core.state import Hyper

_NEEDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("adam", "adam_late_eps", "radam", "radam_schedulefree"), ("betas", "eps")),
    "belief": ("betas", "eps"),
    **dict.fromkeys(("debiased", "uncorrected", "adopt", "adagrad", "rmsprop", "factored_torch"), ("eps",)),
    "blocks": ("beta2", "eps"),
}
"""Row of `SECOND_MOMENTS` -> group keys that it uses; here, because a state is asked for them without a number being read."""


class OptimizerSpec(NamedTuple):
    """What is known of one optimizer, and where it was read."""

    classes: str
    """The classes that write such a state, for people."""
    source: str
    """The file of the library that the row was read from."""
    slots: tuple[str, ...] = ()
    """Every tensor an entry may hold: rows of `SLOTS`, which say what each is and what shape it has."""
    always: tuple[str, ...] = ()
    """Slots that at least one entry of a stepped state holds."""
    scalars: tuple[str, ...] = ()
    """Single numbers of an entry beside `step`, tensors or not."""
    marks: tuple[str, ...] = ()
    """Group keys that every such file holds."""
    lacks: tuple[str, ...] = ()
    """Group keys that no such file holds."""
    tells: tuple[str, ...] = ()
    """Scalars of an entry that must be there."""
    when: Callable[[Hyper], bool] | None = None
    """What the group's values must say, where keys alone do not decide."""
    step: str = "entry"
    """Where the number of steps lies: `entry`, `group:<key>,<key>` (the first that is there), both as `entry,group:<key>`, or `none`.

    `<key>-1` counts from one: the step that comes next, not the last one taken.
    """
    moment: str = "none"
    """The row of `SECOND_MOMENTS`."""
    decay: Literal["decoupled", "l2", "unknown", "none"] = "decoupled"
    """Whether weight decay acts on the weights, or inside the gradient and so inside the moments."""
    refuse: str = ""
    """Why `repair` writes nothing; empty: it does."""
    fix: str = "take a few hundred steps with AdamW from this checkpoint, and use the state they leave"
    """What to do where it refuses."""
    starts_cold: str = ""
    """Why the optimizer itself goes on from no file, its own included; empty: it does."""
    averages: Literal["gradients", "steps"] = "gradients"
    """What the first moment is an average of: gradients, or gradients already divided by the second moment (ADOPT, CAME, Adafactor)."""
    assumed: str = ""
    """What was taken for granted in calling a state this: a warning, and the probe wants it confirmed."""
    caution: str = ""
    """What a person should know before using the numbers."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Group keys that the formula of the second moment uses."""
        return _NEEDS.get(self.moment, ())


def step_of(spec: OptimizerSpec, entry_step: float | None, hyper: Hyper) -> float | None:
    """Return the number of updates taken, from where this optimizer keeps it; None: the file does not say."""
    if spec.step.startswith("entry") and entry_step is not None:
        return entry_step
    for key in spec.step.partition("group:")[2].split(","):
        counted, _, ahead = key.partition("-")
        value = hyper.get(counted)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value) - float(ahead or 0)
    return None
