"""A named state in another program's layout: one file an exporter; `EXPORTERS` is the switch."""

from __future__ import annotations

from . import accelerate, bergson, dattri, dcp, deepspeed, less, names, ota, torch_file
from .base import Exporter, ExportOptions

EXPORTERS: dict[str, Exporter] = {
    "torch": torch_file.EXPORTER,
    "less": less.EXPORTER,
    "bergson": bergson.EXPORTER,
    "dattri": dattri.EXPORTER,
    "ota": ota.EXPORTER,
    "names": names.EXPORTER,
    "dcp": dcp.EXPORTER,
    "dcp-flat": dcp.FLAT,
    "dcp-positions": dcp.POSITIONS,
    "deepspeed-universal": deepspeed.EXPORTER,
    "accelerate": accelerate.EXPORTER,
}
"""By the word after `--to`."""

__all__ = ["EXPORTERS", "ExportOptions", "Exporter"]
