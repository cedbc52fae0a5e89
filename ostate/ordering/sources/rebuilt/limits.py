"""Limits of rebuilding a model: its configuration may ask for any number of layers, or for a pattern that never ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ostate.core.foreign import Json
from ostate.core.system import cpu_limit

MOST_LAYERS = 1000
"""The deepest models have two hundred; each layer costs the rebuild some milliseconds, so that 100,000 would take it a minute."""
MOST_OF_A_KIND = 100_000
"""Experts, heads, groups: the largest models of today have hundreds."""
MOST_PARAMETERS = 300_000
"""LoRA on every expert of DeepSeek-V3, unfused, is half of it."""
MOST_SECONDS = 300.0
"""CPU time of one rebuild. The largest mixtures take a minute."""
_LAYERS = re.compile(r"(?:^|_)(?:layers?|depths?|blocks)$", re.IGNORECASE)
"""`num_hidden_layers`, `n_layer`, `encoder_layers`, `depths`; not `block_size`, which is a length."""
_COUNTED = re.compile(r"(?:layer|expert|head|block|depth|stage|codebook|group)(?!.*_size$)", re.IGNORECASE)
"""What is called a size is a width or a length: `block_size` of 131,072 tokens."""


class TooMuch(RuntimeError):
    """The model asks for more than any real one."""


class TooLong(TooMuch):
    """It takes more time than any real one."""

    def __init__(self) -> None:
        super().__init__(f"it takes more than {MOST_SECONDS:g} s")


def absurd(config: Json, key: str = "") -> str:
    """Return which entry of a configuration asks for a number of parts that no model has; empty when none does."""
    if isinstance(config, dict):
        return next((found for name, value in config.items() if (found := absurd(value, name))), "")
    if isinstance(config, list):
        return next((found for value in config if (found := absurd(value, key))), "")
    if isinstance(config, int) and config > (MOST_LAYERS if _LAYERS.search(key) else MOST_OF_A_KIND) and _COUNTED.search(key):
        return f"{key} is {config:.3g}" if config < 1e300 else f"{key} is a number of {config.bit_length()} bits"
    return ""


@contextmanager
def bounded() -> Iterator[None]:
    """Stop what runs within at `MOST_PARAMETERS` parameters of torch modules, or after `MOST_SECONDS` of CPU time, by raising `TooMuch` there.

    Whoever swallows the exception gets it again a second later.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1
        if count > MOST_PARAMETERS:
            raise TooMuch(f"it has more than {MOST_PARAMETERS} parameters")

    hook = register_module_parameter_registration_hook(counted)
    try:
        with cpu_limit(MOST_SECONDS, TooLong):
            yield
    finally:
        hook.remove()
