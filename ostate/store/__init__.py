"""The named format, version 1: write it, read it, check it (`schemas/manifest-v1.schema.json`)."""

from __future__ import annotations

from ostate.publish import check_target

from .digesting import digested
from .loading import load
from .plan import shard_path
from .validating import validate
from .writing import Written, write, write_index

__all__ = ["Written", "check_target", "digested", "load", "shard_path", "validate", "write", "write_index"]
