"""optimizer.bin of `Accelerator.save_state` on one device or DDP: a state dict by position."""

from __future__ import annotations

from .base import Exporter
from .torch_file import losses, refuse, write

EXPORTER = Exporter(
    text="accelerate: Accelerator.load_state", file="optimizer.bin", write=write, losses=losses, refuse=refuse, positional=True, own_slots=True
)
