"""What JSON does not know is said in one of three ways: text in documents, null in the probe's, an object in the manifest."""

from __future__ import annotations

import json
import math

import pytest

from ostate.core.plain import plain_document as of_documents
from ostate.core.state import Finding
from ostate.core.tensors import Part, TensorRef
from ostate.errors import ReadError, StoreError
from ostate.probe.measure.delta import DeltaH1
from ostate.report.json_text import as_json
from ostate.store import from_manifest, manifest

ODD = {"a": [math.nan, (math.inf, -math.inf)], "b": {"c": 1.5, "d": None, "e": True}}
PAIR = TensorRef("F32", (2,), (Part("gone", 0, (2,), (1,), (0,)),))


def test_documents_say_what_is_not_finite_as_text():
    wanted = {"a": ["nan", ["inf", "-inf"]], "b": {"c": 1.5, "d": None, "e": True}}
    assert of_documents(ODD) == wanted
    assert json.loads(as_json(ODD)) == wanted


def test_the_manifest_says_it_so_that_it_comes_back():
    kept = manifest.plain(ODD, "here")
    assert kept["a"] == [{"float": "nan"}, [{"float": "inf"}, {"float": "-inf"}]]
    assert from_manifest.revived(kept)["a"][1] == (math.inf, -math.inf)


def test_a_tensor_of_several_elements_is_described_in_a_document_and_refused_in_a_manifest():
    assert of_documents({"x": PAIR}) == {"x": {"shape": [2], "dtype": "F32"}}
    with pytest.raises(StoreError, match="TensorRef cannot be stored"):
        manifest.plain({"x": PAIR}, "here")
    with pytest.raises(ReadError, match="a complex cannot be printed"):
        of_documents({"x": 1j})


def test_a_finding_is_a_mapping_in_every_document():
    """A logger was given `["rule", "note", …]` by DeltaH1.as_dict, a mapping by all others."""
    finding = Finding(rule="r", severity="note", text="t", names=("a",))
    wanted = {"rule": "r", "severity": "note", "text": "t", "fix": "", "names": ["a"]}
    assert finding.as_dict() == wanted
    shares = {"preconditioned": 1.0}
    numbers = dict.fromkeys(("value", "value_identity", "ratio", "mass_ratio", "plausible_ratio", "cosine"), 1.0)
    known = {name: numbers.get(name, shares if "shares" in name else "healthy") for name in DeltaH1.__dataclass_fields__ if name != "findings"}
    assert DeltaH1(**known, findings=(finding,)).as_dict()["findings"] == [wanted]
