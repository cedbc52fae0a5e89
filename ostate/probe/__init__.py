"""The torch side: an AdamW filled by name, Adam's preconditioner with guards, and the probe that uses both."""

from __future__ import annotations

from ostate.core.extras import needed

with needed("ostate.probe"):
    from .fill.fill import Filled, fill, filled, lora_adamw
    from .measure.delta import DeltaH1, delta_h1
    from .measure.gradients import GradientMean, eval_mode
    from .measure.importance import ImportanceWeights, importance_weights
    from .precondition.formulas import adam_preconditioner, less_update, next_step_update
    from .precondition.guards import Guards
    from .precondition.preconditioner import AdamPreconditioner

__all__ = [
    "AdamPreconditioner",
    "DeltaH1",
    "Filled",
    "GradientMean",
    "Guards",
    "ImportanceWeights",
    "adam_preconditioner",
    "delta_h1",
    "eval_mode",
    "fill",
    "filled",
    "importance_weights",
    "less_update",
    "lora_adamw",
    "next_step_update",
]
