"""The printed documents and the schemas that describe them, each held against the other."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import get_args

import pytest

from ostate.core.naming import ClaimSource
from tests.documents import SOUND, changed, faults, validator
from tests.schemas import closed, read


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_document_is_valid(kind):
    assert faults(SOUND[kind]) == []


@pytest.mark.parametrize("kind", SOUND)
def test_every_field_of_a_document_is_required(kind):
    for field in SOUND[kind]:
        if field == "document":
            continue
        document = copy.deepcopy(SOUND[kind])
        del document[field]
        assert any(repr(field) in fault for fault in faults(document)), field


@pytest.mark.parametrize("kind", SOUND)
def test_an_unknown_field_is_refused(kind):
    assert faults({**SOUND[kind], "surprise": 1})


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("inspect", "version", 2),
        ("inspect", "with_state", -1),
        ("inspect", "entries.0.step", "soon"),
        ("inspect", "entries.0.shape", [4, -1]),
        ("inspect", "entries.0.slots.exp_avg", {"dtype": "F32"}),
        ("inspect", "fit.only_state", {"4x32": 0}),
        ("inspect", "values.exp_avg_sq.high", [1]),
        ("inspect", "findings.0.severity", "fatal"),
        ("verify", "ordering.verdict", "probably"),
        ("verify", "ordering.source", "guess"),
        ("verify", "ordering.margin", "large"),
        ("verify", "ordering.weakest.0.position", None),
        ("verify", "ordering.rejected.0", {"source": "convention"}),
        ("repair", "out", "lora.ostate.safetensors"),
        ("repair", "parameters", "2"),
        ("repair", "findings.0.names", None),
    ],
)
def test_a_wrong_value_is_refused(kind, path, value):
    found = faults(changed(kind, path, value))
    assert found
    assert any(path.split(".")[0] in fault for fault in found)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("inspect", "fit", None),
        ("inspect", "values", None),
        ("verify", "ordering.margin", None),
        ("repair", "out", []),
        ("inspect", "names", "param_names"),
    ],
)
def test_what_may_be_absent_may_be_absent(kind, path, value):
    assert faults(changed(kind, path, value)) == []


@pytest.mark.parametrize("kind", SOUND)
def test_a_schema_says_what_it_describes(kind):
    schema = validator(kind).schema
    assert schema["$id"] == f"urn:ostate:{kind}-v1"
    assert f"ostate {kind}" in schema["title"]


@pytest.mark.parametrize("name", sorted(path.name.removesuffix(".schema.json") for path in (Path(__file__).parents[1] / "schemas").glob("*.json")))
def test_a_field_of_a_later_release_is_passed_over_by_who_has_an_older_schema(name):
    def shut(part):
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        return (isinstance(part, dict) and part.get("additionalProperties") is False) or any(shut(one) for one in inner)

    assert not shut(read(name))
    assert shut(closed(read(name)))


@pytest.mark.parametrize("kind", ["repair", "verify"])
def test_the_schemas_know_every_source_of_names(kind):
    enums = [place["enum"] for place in _within(read(f"{kind}-v1")) if "skeleton" in place.get("enum", ())]
    assert enums
    assert all(set(enum) == set(get_args(ClaimSource)) for enum in enums)


def _within(value):
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _within(inner)
