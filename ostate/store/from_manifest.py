"""A `NamedState` from the JSON of its manifest: every entry is looked at where it is taken out, since a file may be damaged or made by others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from ostate.core.hyper import shown, typed
from ostate.core.naming import NamedParameter, NamedState, Ordering
from ostate.core.state import Finding, Group, Severity
from ostate.core.tensors import Slot
from ostate.optimizers.slots import PARAM_SHAPED

from .patterns import unfold

MOST_POSITIONS = 1 << 24
"""Of one optimizer: the largest models have a few hundred thousand parameters."""
MOST_SIZE = 1 << 63
_VERDICTS: Mapping[str, Literal["verified", "recovered", "partial", "unverified"]] = {
    "verified": "verified", "recovered": "recovered", "partial": "partial", "unverified": "unverified",
}  # fmt: skip
_PROOFS: Mapping[str, Literal["each", "order"]] = {"each": "each", "order": "order"}
_SEVERITIES: Mapping[str, Severity] = {"note": "note", "warning": "warning", "error": "error"}
_ADAPTER_TEXTS = ("name", "peft_type", "base_model", "file", "sha256")


def revived(value: object) -> object:
    """Return what `manifest.plain` was given; lists come back as tuples."""
    if isinstance(value, list):
        return tuple(revived(item) for item in value)
    if isinstance(value, dict):
        if set(value) == {"float"} and value["float"] in {"inf", "-inf", "nan"}:
            return float(value["float"])
        return {key: revived(item) for key, item in value.items()}
    return value


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
