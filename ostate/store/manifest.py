"""The manifest: a `NamedState` as plain JSON. `from_manifest` makes the state of it again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from ostate import __version__
from ostate.core import plain as values
from ostate.core.naming import NamedParameter, NamedState, Ordering
from ostate.core.state import Finding, Group
from ostate.errors import StoreError

from .patterns import fold

if TYPE_CHECKING:
    from typing_extensions import NotRequired

VERSION = 1
NAMES_KEPT = 20
"""Names that a finding keeps in the manifest (`validate --deep` finds the others again), and above which undecided ones are written as patterns."""
_ODD = {math.inf: "inf", -math.inf: "-inf"}


def creator() -> str:
    """Return who writes: `ostate 0.2.0`."""
    return f"ostate {__version__}"


class ParameterRow(TypedDict):
    """One parameter as the manifest has it (schemas/manifest-v1.schema.json)."""

    group: int
    position: int | None
    adapter_key: str | None
    shape: list[int]
    step: float | None
    slots: list[str]
    decoded_from: str
    dtype: NotRequired[str]
    digest: dict[str, str]
    scalars: NotRequired[object]


class Manifest(TypedDict):
    """The manifest, once the schema has held it. A group is its `names`, and hyperparameters as the file has them."""

    format_version: int
    created_by: str
    optimizer: dict[str, str]
    groups: list[dict[str, object]]
    parameters: dict[str, ParameterRow]
    adapter: object
    source: object
    ordering: dict[str, object] | None
    findings: list[dict[str, object]]
    shard: NotRequired[dict[str, int]]
    migration: NotRequired[object]


def plain(value: object, where: str) -> object:
    """Return a hyperparameter or scalar as JSON can hold it; numbers that are not finite become `{"float": "nan"}`.

    Raises:
        StoreError: it cannot be held: a tensor of several elements, an object.
    """

    def other(value: object) -> object:
        raise StoreError(f"a value of type {type(value).__name__} cannot be stored in a named file", where=where, fix="report this layout")

    return values.plain(value, lambda number: {"float": _ODD.get(number, "nan")}, other)


def of_state(
    state: NamedState,
    names: Sequence[str],
    digests: Mapping[tuple[str, str], str],
    findings: Sequence[Finding],
    shard: tuple[int, int] | None = None,
) -> str:
    """Return the manifest of the parameters `names` as text; the same state gives the same text."""
    chosen = set(names)
    source = dict(state.source)
    migration = source.pop("migration", None)
    manifest: dict[str, object] = {
        "format_version": VERSION,
        "created_by": creator(),
        "optimizer": {"class": state.optimizer_class, "family": state.optimizer},
        "groups": [_group(group, _names_here(group, chosen, state.parameters, first=shard is None or shard[0] == 1)) for group in state.groups],
        "parameters": {name: _parameter(state.parameters[name], digests) for name in names},
        "adapter": plain(dict(state.adapter), "adapter"),
        "source": plain(source, "source"),
        "ordering": None if state.ordering is None else _ordering(state.ordering, state.parameters),
        "findings": [_finding(finding) for finding in findings],
    }
    if shard is not None:
        manifest["shard"] = {"index": shard[0], "of": shard[1]}
    if migration is not None:
        manifest["migration"] = plain(migration, "migration")
    return json.dumps(manifest, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _names_here(group: Group, chosen: set[str], parameters: Mapping[str, NamedParameter], *, first: bool) -> list[str]:
    """Return the group's names that this file lists: of its own parameters, and of those without state that follow them (or lead the group)."""
    leader = next((name for name in group.names or () if name in parameters), None)
    here = first if leader is None else leader in chosen
    names = []
    for name in group.names or ():
        if name in parameters:
            here = name in chosen
        if here:
            names.append(name)
    return names


def _group(group: Group, names: Sequence[str]) -> dict[str, object]:
    return {"names": list(names), **{key: plain(value, f"group {group.index}: {key}") for key, value in group.hyper.items()}}


def _parameter(parameter: NamedParameter, digests: Mapping[tuple[str, str], str]) -> dict[str, object]:
    row: dict[str, object] = {
        "group": parameter.group,
        "position": parameter.position,
        "adapter_key": parameter.adapter_key,
        "shape": list(parameter.shape),
        "step": None if parameter.step is None else plain(parameter.step, parameter.name),
        "slots": list(parameter.slots),
        "decoded_from": parameter.decoded_from,
        "dtype": parameter.dtype,
        "digest": {slot: digests[parameter.name, slot] for slot in parameter.slots},
    }
    if parameter.scalars:
        row["scalars"] = plain(dict(parameter.scalars), parameter.name)
    return row


def _ordering(ordering: Ordering, parameters: Mapping[str, NamedParameter]) -> dict[str, object]:
    # of an order that is proven as a whole they are a fact; where names are in doubt, each is written out
    many = ordering.proof == "order" and len(ordering.undecided) > NAMES_KEPT
    undecided, patterns = fold(ordering.undecided, parameters) if many else (list(ordering.undecided), [])
    return {
        "source": ordering.source,
        "rule": ordering.rule,
        "verdict": ordering.verdict,
        "proof": ordering.proof,
        "weakest_alternative": alternative(ordering),
        "margin": ordering.margin if ordering.margin is None or math.isfinite(ordering.margin) else None,
        "undecided": undecided,
        **({"undecided_patterns": patterns} if patterns else {}),
        "rejected": [dict(loser) for loser in ordering.rejected],
        "left_out": list(ordering.left_out),
        "assumed": list(ordering.assumed),
    }


def alternative(ordering: Ordering) -> dict[str, object] | None:
    """Return the other order with the least evidence against it."""
    if ordering.weakest_alternative is None:
        return None
    what, digits = ordering.weakest_alternative
    return {"what": what, "digits": digits}


def _finding(finding: Finding) -> Mapping[str, object]:
    kept = finding.names[:NAMES_KEPT]
    return finding._replace(names=kept, more=finding.more + len(finding.names) - len(kept)).as_dict()
