"""The schemas as the tests hold our own documents to them: closed, so that a field without a line in a schema fails here, and nowhere else."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def closed(schema: Any) -> Any:
    """Return the schema with every object that lists its properties closed to others."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    lists = isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema
    return {**found, "additionalProperties": False} if lists else found


def read(name: str) -> dict[str, Any]:
    """Return a schema as it ships, by its name and version: `manifest-v1`."""
    return dict(json.loads((resources.files("ostate.schemas") / f"{name}.schema.json").read_text(encoding="utf-8")))
