"""Is this a sound named file? Every answer is a list of findings; an unreadable path raises."""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, cast

from jsonschema import Draft202012Validator

from ostate.core.files import read_at, size_of
from ostate.core.safetensors import Head
from ostate.core.state import Finding
from ostate.core.tensors import TensorRef
from ostate.errors import ReadError, StoreError, refusing
from ostate.optimizers.slots import PARAM_SHAPED

from . import from_manifest, header
from .copying import digest_of
from .loading import find, open_heads, parsed
from .writing import index_text

if TYPE_CHECKING:
    from .manifest import Manifest

_LARGEST = 3.4028234663852886e38
"""Of float32, as steps are stored."""
DAMAGED = "the file is damaged or was changed: repair again from the source"


@refusing
def validate(path: str | os.PathLike[str], deep: bool = False) -> list[Finding]:
    """Check schema, shapes, offsets, names, groups, ranges and the header's own digest; with `deep` every tensor's digest too.

    Raises:
        ReadError: no such file.
        StoreError: a folder without one named state.
    """
    place = find(os.fsdecode(path))
    try:
        heads = open_heads(place)
        manifests = [parsed(head) for head in heads]
    except (StoreError, ReadError) as error:
        fix = f"{error.fix}; if this is one, {DAMAGED}" if error.fix == header.NOT_OURS else DAMAGED
        return [_error("unreadable", error.what, where=error.where, fix=fix)]
    found = [finding for head, rows in zip(heads, manifests) for finding in _one(head, rows, deep=deep)]
    if place.endswith(".json") and not any(finding.rule == "schema" for finding in found):
        found += _across(place, heads, [cast("Manifest", rows) for rows in manifests])
    return found


def _error(rule: str, text: str, *, names: tuple[str, ...] = (), where: str = "", fix: str = DAMAGED) -> Finding:
    return Finding(rule=rule, severity="error", text=f"{text} ({where})" if where else text, fix=fix, names=names)


def _one(head: Head, found: Mapping[str, object], *, deep: bool) -> Iterator[Finding]:
    if not header.is_sealed(head):
        yield _error("header-digest", "the header was changed after writing")
    broken = list(_against_schema(found))
    yield from broken
    if broken:
        return
    rows = cast("Manifest", found)  # the schema held it
    yield from _membership(rows)
    yield from _tensors(head, rows)
    yield from _ranges(rows)
    if deep:
        yield from _digests(head, rows)


@cache
def schema(name: str) -> dict[str, object]:
    """Return one of the schemas that ship with ostate."""
    return dict(json.loads((files("ostate.schemas") / f"{name}.schema.json").read_text(encoding="utf-8")))


def _against_schema(rows: Mapping[str, object]) -> Iterator[Finding]:
    for number, error in enumerate(Draft202012Validator(schema("manifest-v1")).iter_errors(rows)):
        if number == 20:
            return
        yield _error("schema", f"manifest: {error.json_path}: {error.message[:200]}")


def _membership(rows: Manifest) -> Iterator[Finding]:
    listed = [from_manifest.texts(group["names"]) for group in rows["groups"]]
    grouped = [name for names in listed for name in names]
    twice = tuple(sorted({name for name in grouped if grouped.count(name) > 1})) if len(set(grouped)) != len(grouped) else ()
    if twice:
        yield _error("group-membership", "names that are in two groups", names=twice)
    stray = tuple(sorted(set(rows["parameters"]) - set(grouped)))
    if stray:
        yield _error("group-membership", "parameters that are in no group", names=stray)
    members = [set(names) for names in listed]
    wrong = tuple(name for name, row in rows["parameters"].items() if not (row["group"] < len(members) and name in members[row["group"]]))
    if wrong:
        yield _error("group-membership", "parameters that name another group than the one that lists them", names=wrong)
    positions = [row["position"] for row in rows["parameters"].values() if row["position"] is not None]
    if len(set(positions)) != len(positions):
        yield _error("positions", "two parameters claim one position of the source")


def _tensors(head: Head, rows: Manifest) -> Iterator[Finding]:
    wanted = {f"state.{name}.{slot}" for name, row in rows["parameters"].items() for slot in row["slots"]}
    wanted |= {f"state.{name}.step" for name, row in rows["parameters"].items() if row["step"] is not None}
    if missing := sorted(wanted - set(head.tensors)):
        yield _error("tensors", f"{len(missing)} tensors are missing", names=tuple(missing))
    if extra := sorted(set(head.tensors) - wanted):
        yield _error("tensors", f"{len(extra)} tensors are in no parameter's list", names=tuple(extra))
    for name, row in rows["parameters"].items():
        if set(row["digest"]) != set(row["slots"]):
            yield _error("digest", "a digest is missing, or one too many", names=(name,))
        for slot in row["slots"]:
            tensor = head.tensors.get(f"state.{name}.{slot}")
            if tensor is not None and slot in PARAM_SHAPED and tensor.shape != tuple(row["shape"]):
                yield _error("shape", f"{slot} has shape {list(tensor.shape)}, its parameter {row['shape']}", names=(name,))
        step = head.tensors.get(f"state.{name}.step")
        if step is not None and row["step"] is not None and not _is_step(step, row["step"]):
            yield _error("step", f"the step tensor is not the manifest's {row['step']}", names=(name,))


def _is_step(tensor: TensorRef, step: float) -> bool:
    run = tensor.run
    if tensor.dtype != "F32" or tensor.shape != () or run is None:
        return False
    return abs(step) <= _LARGEST and read_at(run[0], run[1], 4) == struct.pack("<f", step)


def _ranges(rows: Manifest) -> Iterator[Finding]:
    for index, group in enumerate(rows["groups"]):
        hyper = {key: from_manifest.revived(value) for key, value in group.items() if key != "names"}
        for key, low, high in (("lr", 0.0, math.inf), ("initial_lr", 0.0, math.inf), ("eps", 0.0, math.inf), ("weight_decay", -math.inf, math.inf)):
            values = hyper.get(key)
            for value in values if isinstance(values, tuple) else (values,):
                if isinstance(value, (int, float)) and not (low <= value <= high and abs(value) <= sys.float_info.max):
                    yield _error("range", f"group {index}: {key} is {value}")
        betas = hyper.get("betas")
        if isinstance(betas, tuple) and any(isinstance(beta, (int, float)) and not 0 <= beta < 1 for beta in betas[:2]):
            yield _error("range", f"group {index}: betas are {betas}")
    odd = tuple(name for name, row in rows["parameters"].items() if row["step"] is not None and not _is_whole(row["step"]))
    if odd:
        yield _error("range", "steps that are no whole numbers", names=odd)


def _is_whole(step: float) -> bool:
    return isinstance(step, int) or step.is_integer()


def _digests(head: Head, rows: Manifest) -> Iterator[Finding]:
    for name, row in rows["parameters"].items():
        for slot, text in row["digest"].items():
            tensor = head.tensors.get(f"state.{name}.{slot}")
            if tensor is not None and digest_of(tensor, text) != text:
                yield other_bytes(name, slot)


def other_bytes(name: str, slot: str) -> Finding:
    """Return the finding that a slot's bytes are not those that its digest was taken of."""
    return _error("digest", f"the bytes of {slot} were changed after writing", names=(name,))


def _across(place: str, heads: list[Head], manifests: list[Manifest]) -> Iterator[Finding]:
    text = index_text([(Path(head.path).name, head) for head in heads])
    if read_at(place, 0, size_of(place)) != text:
        yield _error("index", "the index is not as it was written")
    shards = [rows.get("shard") for rows in manifests]
    if shards != [{"index": number, "of": len(heads)} for number in range(1, len(heads) + 1)]:
        yield _error("index", "the files are not the parts 1 to n of one state")
    names = [name for rows in manifests for group in rows["groups"] for name in from_manifest.texts(group["names"])]
    if len(set(names)) != len(names):
        yield _error("index", "a parameter is in two files")
    common = [{key: value for key, value in rows.items() if key not in {"parameters", "shard", "groups"}} for rows in manifests]
    if any(rows != common[0] for rows in common):
        yield _error("index", "the files are parts of different states")
