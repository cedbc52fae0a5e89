"""The torch side: an AdamW filled by name, Adam's preconditioner with guards, and the probe that uses both."""

from __future__ import annotations

from .fill import Filled, fill, filled, lora_adamw
from .formulas import adam_preconditioner, less_update, next_step_update
from .gradients import eval_mode
from .guards import Guards
from .preconditioner import AdamPreconditioner

__all__ = [
    "AdamPreconditioner",
    "Filled",
    "Guards",
    "adam_preconditioner",
    "eval_mode",
    "fill",
    "filled",
    "less_update",
    "lora_adamw",
    "next_step_update",
]
