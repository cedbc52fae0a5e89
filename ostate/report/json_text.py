"""A printed document as JSON that every reader takes: numbers that JSON does not know become text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def as_json(document: Mapping[str, Any]) -> str:
    """Return the document as JSON text; nan, inf and -inf as strings, as the schemas say."""
    return json.dumps(_known(document), indent=1, allow_nan=False)


def _known(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _known(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_known(one) for one in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
