"""Change a field of a record, whichever kind it is."""

from __future__ import annotations

import dataclasses
from typing import Any


def replace(record: Any, /, **changes: Any) -> Any:
    """Return a copy of a dataclass or of a record of ours with some fields changed (`copy.replace`, from Python 3.13 on)."""
    return record._replace(**changes) if hasattr(record, "_replace") else dataclasses.replace(record, **changes)
