"""Moving averages of a model that lie beside its weights in one state dict: no optimizer holds them, and they have every shape that was trained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ostate.core.tensors import TensorRef

_AVERAGE = re.compile(r"(?:^|_)ema(?:$|_)")
"""In a module's name: `model_ema` (latent diffusion), `diffusion_ema.ema_model` (stable-audio-tools), `ema_model` (ema_pytorch)."""


def without_averages(tensors: Mapping[str, TensorRef]) -> Mapping[str, TensorRef]:
    """Return the weights without the averages, or all of them where some tensor under such a name averages none of the others.

    An average has the name's end and the shape of what it averages; latent diffusion takes the dots out of it (ldm/modules/ema.py).
    Counters and rates (a number each) average nothing.
    """
    averages = {key: rest for key in tensors if (rest := _averaged(key)) is not None}
    if not averages or len(averages) == len(tensors):
        return tensors
    ends = {(end, tensors[key].shape) for key in tensors if key not in averages for end in _ends(key)}
    if any(tensors[key].numel > 1 and (rest.replace(".", ""), tensors[key].shape) not in ends for key, rest in averages.items()):
        return tensors
    return {key: ref for key, ref in tensors.items() if key not in averages}


def _averaged(key: str) -> str | None:
    """Return what follows the last module of the key that is called an average; None where none is."""
    modules = key.split(".")
    at = max((at for at, part in enumerate(modules[:-1]) if _AVERAGE.search(part)), default=None)
    return None if at is None else ".".join(modules[at + 1 :])


def _ends(key: str) -> Iterator[str]:
    parts = key.split(".")
    return ("".join(parts[at:]) for at in range(len(parts)))
