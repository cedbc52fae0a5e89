"""What the preconditioner does where the second moment cannot be trusted: one frozen value, no hidden choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ostate.core.brief import brief
from ostate.errors import ProbeError

from .usable import number

Fallback = Literal["identity", "zero", "raise"]
FILL_OR_FREEZE = "fill the optimizer by name (ostate repair, then lora_adamw), or freeze the parameters that the state does not have"
"""What to do where too few parameters have a second moment."""
_ONE_OF: dict[str, tuple[str | bool, ...]] = {
    "fallback": ("identity", "zero", "raise"), "zero_elements": ("fallback", "scale"), "unknown": ("raise", "identity"),
    "cold_is_bad": (True, False), "infinite_is_bad": (True, False),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Guards:
    """The choices, each by name. The defaults are those of the design; `Guards.seed()` gives the fixed cap of 1e3."""

    fallback: Fallback = "identity"
    """For a parameter whose v is missing, negative, not finite or all zero: scale 1, scale 0, or a ProbeError."""
    zero_elements: Literal["fallback", "scale"] = "fallback"
    """Single elements with v == 0 carry no information: as `fallback` says (`raise` gives 0), or 1/eps under the cap."""
    relative_cap: float | None = 1e3
    """Largest scale, in units of the median scale over the covered elements of the parameter's kind (lora_A, lora_B, head, norm, …)."""
    max_scale: float | None = None
    """Largest scale, absolute; units 1/grad."""
    cold_is_bad: bool = True
    """Whether an all-zero v is a fallback for its parameter."""
    infinite_is_bad: bool = True
    """Whether an infinite v is a fallback for its parameter; False: scale 0 at that element."""
    smallest_denominator: float = 0.0
    """A parameter whose largest denominator is below this falls back; units grad."""
    identity_if_coverage_below: float = 0.9
    """Share of parameters with v under which every parameter gets scale 1 (`fallback="raise"`: a ProbeError)."""
    unknown: Literal["raise", "identity"] = "raise"
    """What `apply` does with a parameter that the preconditioner never saw."""
    healthy_ratio: float | None = None
    """Fixed bound on bars_dot over its identity value; None: within 1/30 to 30 of what the state's own v makes plausible."""

    def __repr__(self) -> str:
        return brief(self)

    def __post_init__(self) -> None:
        for name in ("relative_cap", "max_scale", "healthy_ratio"):
            value = getattr(self, name)
            if value is not None and not (number(value) or 0) > 0:
                raise ProbeError(f"{name} must be a positive finite number, not {value!r}", where="Guards")
        for name in ("smallest_denominator", "identity_if_coverage_below"):
            least = number(getattr(self, name))
            if least is None or least < 0:
                raise ProbeError(f"{name} must be a finite number from 0, not {getattr(self, name)!r}", where="Guards")
        for name, allowed in _ONE_OF.items():
            if getattr(self, name) not in allowed:
                raise ProbeError(f"{name} must be one of {', '.join(map(str, allowed))}, not {getattr(self, name)!r}", where="Guards")
        if self.zero_elements == "scale" and self.relative_cap is None and self.max_scale is None:
            raise ProbeError("elements with v == 0 get 1/eps and no cap is set", where="Guards", fix="set max_scale or relative_cap")

    @classmethod
    def seed(cls) -> Guards:
        """Identity per parameter, an absolute cap of 1e3, zero elements through 1/eps, the ratio judged against 1e3."""
        return cls(
            zero_elements="scale",
            relative_cap=None,
            max_scale=1e3,
            cold_is_bad=False,
            infinite_is_bad=False,
            smallest_denominator=1e-12,
            unknown="identity",
            healthy_ratio=1e3,
        )

    @property
    def fallback_scale(self) -> float:
        """The scale of an element without information."""
        return 1.0 if self.fallback == "identity" else 0.0
