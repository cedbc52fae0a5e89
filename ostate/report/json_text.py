"""A printed document as JSON that every reader takes: numbers that JSON does not know become text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ostate.core.plain import plain


def as_json(document: Mapping[str, Any]) -> str:
    """Return the document as JSON text; nan, inf and -inf as strings, as the schemas say."""
    return json.dumps(plain(document, repr, _unknown), indent=1, allow_nan=False)


def _unknown(value: Any) -> Any:
    raise TypeError(f"a document holds plain values, not {type(value).__name__}")
