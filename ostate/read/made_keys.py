"""Weights under keys that no file holds: models joined under their folders' names, pairs divided that were saved as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ostate.core.naming import Adapter
from ostate.core.tensors import TensorRef


def with_made_keys(adapter: Adapter, tensors: Mapping[str, TensorRef], *said: str) -> Adapter:
    """Return the adapter with these tensors, some of them under such keys; `said`: a sentence on each sort of them, for what is assumed."""
    return replace(adapter, tensors=tensors, assumed=(*adapter.assumed, *said), made_keys=(*adapter.made_keys, *said))
