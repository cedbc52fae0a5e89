"""The manifest: a `NamedState` as plain JSON, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

from ostate import __version__
from ostate.core import plain as values
from ostate.core.hyper import shown, typed
from ostate.core.naming import NamedParameter, NamedState, Ordering
from ostate.core.state import Finding, Group, Severity
from ostate.core.tensors import Slot
from ostate.errors import StoreError
from ostate.optimizers.slots import PARAM_SHAPED

from .patterns import fold, unfold

if TYPE_CHECKING:
    from typing_extensions import NotRequired

VERSION = 1
NAMES_KEPT = 20
"""Names that a finding keeps in the manifest (`validate --deep` finds the others again), and above which undecided ones are written as patterns."""
_ODD = {math.inf: "inf", -math.inf: "-inf"}
MOST_POSITIONS = 1 << 24
"""Of one optimizer: the largest models have a few hundred thousand parameters."""
MOST_SIZE = 1 << 63
_VERDICTS: Mapping[str, Literal["verified", "recovered", "partial", "unverified"]] = {
    "verified": "verified", "recovered": "recovered", "partial": "partial", "unverified": "unverified",
}  # fmt: skip
_PROOFS: Mapping[str, Literal["each", "order"]] = {"each": "each", "order": "order"}
_SEVERITIES: Mapping[str, Severity] = {"note": "note", "warning": "warning", "error": "error"}
_ADAPTER_TEXTS = ("name", "peft_type", "base_model", "file", "sha256")


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


def revived(value: object) -> object:
    """Return what `plain` was given; lists come back as tuples."""
    if isinstance(value, list):
        return tuple(revived(item) for item in value)
    if isinstance(value, dict):
        if set(value) == {"float"} and value["float"] in {"inf", "-inf", "nan"}:
            return float(value["float"])
        return {key: revived(item) for key, item in value.items()}
    return value


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


def to_state(manifest: Mapping[str, object], slots: Mapping[str, Mapping[str, Slot]], path: str) -> NamedState:
    """Return the state that a sound manifest describes, its numbers behind `slots[name][slot]`."""
    parameters = {name: _revived_parameter(name, json_object(row), slots[name]) for name, row in json_object(manifest["parameters"]).items()}
    groups = []
    for index, row in enumerate(map(json_object, json_list(manifest["groups"]))):
        names = texts(row["names"])
        positions = tuple(p for name in names if name in parameters and (p := parameters[name].position) is not None)
        hyper, wrong = typed({key: revived(value) for key, value in row.items() if key != "names"})
        if wrong:
            key, what = next(iter(wrong.items()))
            raise ValueError(f"{key} of group {index} {what}")
        groups.append(Group(index=index, positions=positions, hyper=hyper, names=names))
    for name, parameter in parameters.items():
        if not 0 <= parameter.group < len(groups) or name not in (groups[parameter.group].names or ()):
            raise ValueError(f"{name!r} is not in the group it names")
        if any(slot in PARAM_SHAPED and math.prod(one.shape) != math.prod(parameter.shape) for slot, one in parameter.slots.items()):
            raise ValueError(f"a slot of {name!r} has not as many numbers as it")
        if parameter.position is not None and not 0 <= parameter.position < MOST_POSITIONS:
            raise ValueError(f"{name!r} has a position that no optimizer has")
    optimizer = json_object(manifest["optimizer"])
    return NamedState(
        optimizer=text(optimizer["family"]),
        optimizer_class=text(optimizer["class"]),
        groups=tuple(groups),
        parameters=parameters,
        ordering=None if manifest["ordering"] is None else _revived_ordering(json_object(manifest["ordering"]), parameters),
        adapter=_revived_adapter(manifest["adapter"]),
        source=_revived_source(manifest),
        findings=tuple(_revived_finding(json_object(row)) for row in json_list(manifest["findings"])),
        path=path,
    )


def _revived_parameter(name: str, row: Mapping[str, object], slots: Mapping[str, Slot]) -> NamedParameter:
    return NamedParameter(
        name=name,
        shape=_whole_numbers(row["shape"], name),
        group=_whole_number(row["group"], name),
        slots={slot: slots[slot] for slot in texts(row["slots"])},
        step=None if row["step"] is None else _number(revived(row["step"])),
        position=None if row["position"] is None else _whole_number(row["position"], name),
        adapter_key=None if row["adapter_key"] is None else text(row["adapter_key"]),
        decoded_from=text(row["decoded_from"]),
        dtype=text(row.get("dtype", "F32")),
        scalars=_object(row.get("scalars", {})),
    )


def _revived_adapter(row: object) -> dict[str, object]:
    facts = _object(row)
    for key in _ADAPTER_TEXTS:
        if facts.get(key) is not None:
            text(facts[key])
    rank = facts.get("r")
    if rank is not None and type(rank) is not int:
        raise ValueError(f"{shown(rank)} where the adapter's rank belongs")
    return facts


def _revived_source(manifest: Mapping[str, object]) -> dict[str, object]:
    facts = _object(manifest["source"])
    if "layout" in facts:
        text(facts["layout"])
    if "positions" in facts:
        facts["positions"] = _whole_numbers(json_object(manifest["source"])["positions"], "positions of the source")
    files = facts.get("files", ())
    if not isinstance(files, tuple) or not all(isinstance(file, dict) for file in files):
        raise ValueError(f"{shown(files)} where a list of files belongs")
    if "migration" in manifest:
        facts["migration"] = {key: said if isinstance(said, str) else texts(said) for key, said in _object(manifest["migration"]).items()}
    return facts


def json_object(value: object) -> Mapping[str, object]:
    """Return what a manifest holds where an object belongs.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{shown(value)} where an object belongs")
    return value


def json_list(value: object) -> Sequence[object]:
    """Return what a manifest holds where a list belongs.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{shown(value)} where a list belongs")
    return value


def _object(value: object) -> dict[str, object]:
    return {key: revived(one) for key, one in json_object(value).items()}


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{shown(value)} where a number belongs")
    return float(value)


def _whole_number(value: object, what: str) -> int:
    if type(value) is not int:
        raise ValueError(f"{shown(value)} where a whole number of {what!r} belongs")
    return value


def text(value: object) -> str:
    """Return what a manifest holds where a text belongs.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} where a text belongs")
    return value


def texts(value: object) -> tuple[str, ...]:
    """Return what a manifest holds where a list of texts belongs.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{shown(value)} where a list of texts belongs")
    return tuple(map(text, value))


def _whole_numbers(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and 0 <= size < MOST_SIZE for size in value):
        raise ValueError(f"{what!r} is no list of whole numbers")
    return tuple(value)


def by_position(parameters: Mapping[str, NamedParameter]) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
    """Return names and adapter keys by the source's positions."""
    last = max((p.position for p in parameters.values() if p.position is not None), default=-1)
    names: list[str | None] = [None] * (last + 1)
    keys: list[str | None] = [None] * (last + 1)
    for parameter in parameters.values():
        if parameter.position is not None:
            names[parameter.position], keys[parameter.position] = parameter.name, parameter.adapter_key
    return tuple(names), tuple(keys)


def _revived_ordering(row: Mapping[str, object], parameters: Mapping[str, NamedParameter]) -> Ordering:
    names, keys = by_position(parameters)
    return Ordering(
        names=names,
        keys=keys,
        source=text(row["source"]),
        rule=text(row.get("rule", "")),
        verdict=_VERDICTS[text(row["verdict"])],
        proof=None if row.get("proof") is None else _PROOFS[text(row["proof"])],
        weakest_alternative=None if row.get("weakest_alternative") is None else _revived_alternative(json_object(row["weakest_alternative"])),
        margin=None if row["margin"] is None else _number(row["margin"]),
        undecided=unfold(texts(row["undecided"]), texts(row.get("undecided_patterns", ())), parameters),
        rejected=tuple({key: text(value) for key, value in json_object(loser).items()} for loser in json_list(row["rejected"])),
        left_out=_whole_numbers(row.get("left_out", []), "what was left out"),
        assumed=texts(row.get("assumed", ())),
    )


def _revived_alternative(row: Mapping[str, object]) -> tuple[str, float]:
    return str(row["what"]), _number(row["digits"])


def _revived_finding(row: Mapping[str, object]) -> Finding:
    severity = _SEVERITIES[text(row["severity"])]
    more = row.get("more", 0)
    if type(more) is not int or more < 0:
        raise ValueError(f"{shown(more)} further names of a finding")
    names = texts(row.get("names", ()))
    return Finding(rule=text(row["rule"]), severity=severity, text=text(row["text"]), fix=text(row.get("fix", "")), names=names, more=more)
