"""Documents as the commands print them: small, sound, one of each kind. Tests change one thing at a time."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonschema

from tests.schemas import closed, read

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"

FINDING: dict[str, Any] = {
    "rule": "second-moment-cold",
    "severity": "warning",
    "text": "1 parameter has a second moment of zeros",
    "fix": "train one more step, or leave it out",
    "names": [B],
}

INSPECT: dict[str, Any] = {
    "document": "ostate-inspect",
    "version": 1,
    "source": "checkpoint-2",
    "layout": "torch",
    "optimizer": "adamw",
    "files": [{"path": "checkpoint-2/optimizer.pt", "size": 4096, "index_sha256": "ab" * 32}],
    "positions": 3,
    "with_state": 2,
    "names": None,
    "groups": [
        {"index": 0, "positions": [0, 1], "hyper": {"lr": 1e-4, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}, "names": None},
        {"index": 1, "positions": [2], "hyper": {"lr": 1e-4, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1}, "names": None},
    ],
    "entries": [
        {
            "position": 0,
            "group": 0,
            "name": None,
            "shape": [4, 32],
            "step": 2.0,
            "slots": {
                "exp_avg": {"dtype": "F32", "encoding": "plain", "shape": [4, 32]},
                "exp_avg_sq": {"dtype": "packed", "encoding": "bnb-8bit", "shape": [4, 32]},
            },
        },
        {
            "position": 1,
            "group": 0,
            "name": None,
            "shape": None,
            "step": "nan",
            "slots": {"exp_avg": {"dtype": "F32", "encoding": "plain", "shape": []}},
        },
        {"position": 2, "group": 1, "name": None, "shape": None, "step": None, "slots": {}},
    ],
    "facts": {"global_step": 2, "transformers_version": "5.23.0"},
    "fit": {
        "adapter": "adapter_model.safetensors",
        "tensors": 2,
        "with_state": 2,
        "matched": 1,
        "only_state": {"scalar": 1},
        "only_adapter": {"32x4": 1},
    },
    "values": {"exp_avg_sq": {"elements": 128, "zeros": 0, "low": 1e-12, "high": "inf"}},
    "findings": [FINDING],
}

ORDERING: dict[str, Any] = {
    "source": "skeleton",
    "rule": "trainer >= 4.53",
    "verdict": "partial",
    "margin": 31.5,
    "named": 2,
    "undecided": [A],
    "left_out": [2],
    "rejected": [{"source": "convention", "rule": "natural sort", "reason": "the tensor values contradict it"}],
    "tests": ["displacement"],
    "silent": {"balance": "step 1: B was zero"},
    "weakest": [{"name": B, "position": 1, "score": 40.25, "rival": None, "margin": "inf"}],
}

VERIFY: dict[str, Any] = {"document": "ostate-verify", "version": 1, "source": "checkpoint-2", "ordering": ORDERING, "findings": [FINDING]}

REPAIR: dict[str, Any] = {
    **VERIFY,
    "document": "ostate-repair",
    "out": ["lora.ostate.safetensors"],
    "optimizer": "adamw",
    "parameters": 2,
}

SOUND: dict[str, dict[str, Any]] = {"inspect": INSPECT, "verify": VERIFY, "repair": REPAIR}


def changed(kind: str, path: str, value: Any) -> dict[str, Any]:
    """Return the sound document of `kind` with what lies at `path` (`ordering.verdict`, `entries.0.step`) set to `value`."""
    document: Any = copy.deepcopy(SOUND[kind])
    at = document
    *inner, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in inner:
        at = at[part]
    at[last] = value
    return document


def validator(kind: str) -> jsonschema.Draft202012Validator:
    """Return the validator of the schema that ships for `kind`."""
    schema = read(f"{kind}-v1")
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(closed(schema))


def faults(document: dict[str, Any]) -> list[str]:
    """Return what the document's own schema has against it, after a trip through JSON as the commands print it."""
    kind = document["document"].removeprefix("ostate-")
    text = json.dumps(document, allow_nan=False)
    return [f"{error.json_path}: {error.message}" for error in validator(kind).iter_errors(json.loads(text))]
