"""A printed document as JSON that every reader takes: numbers that JSON does not know become text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from ostate.core.plain import plain
from ostate.errors import OstateError

if TYPE_CHECKING:
    from ostate.core.documents import ErrorDocument


def as_json(document: Mapping[str, object]) -> str:
    """Return the document as JSON text; nan, inf and -inf as strings, as the schemas say."""
    return json.dumps(plain(document, repr, _unknown), indent=1, allow_nan=False)


def error_document(error: OstateError, exit_code: int) -> ErrorDocument:
    """Return the document that schemas/error-v1.schema.json describes."""
    return {
        "document": "ostate-error",
        "version": 1,
        "error": type(error).__name__,
        "what": error.what,
        "where": error.where,
        "why": list(error.why),
        "fix": error.fix,
        "exit_code": exit_code,
    }


def _unknown(value: object) -> NoReturn:
    raise TypeError(f"a document holds plain values, not {type(value).__name__}")
