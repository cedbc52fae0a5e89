"""Which of a base model's tensors a trained one was copied from."""

from __future__ import annotations

from collections.abc import Mapping

from ostate.core.tensors import TensorRef


def base_tensor(key: str, base: Mapping[str, TensorRef]) -> TensorRef | None:
    """Return the base model's tensor that a `modules_to_save` or bias key was copied from, or None."""
    bare = key.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".modules_to_save.", ".")
    for form in (key, bare, f"model.{bare}", bare.removeprefix("model.")):
        if form in base:
            return base[form]
    return None
