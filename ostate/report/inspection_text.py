"""What `ostate inspect` prints: the inspect document as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ostate.report.text import document_findings, hyper_text, number, printable, ranges, shorten, table

_HYPER = ("lr", "initial_lr", "betas", "eps", "weight_decay")


def lines(document: Mapping[str, Any]) -> list[str]:
    """Return the lines for one inspect document."""
    entries = document["entries"]
    out = [printable(document["source"]), *_summary(document), "", *_groups(document)]
    slots = _slots(entries)
    if slots:
        out += ["", *table(slots, ("slot", "dtype", "encoding", "shape", "count"))]
    if document["fit"]:
        out += ["", *_fit(document["fit"])]
    if document["values"]:
        out += ["", *_values(document["values"])]
    if document["findings"]:
        out += ["", *document_findings(document["findings"])]
    return out


def _summary(document: Mapping[str, Any]) -> list[str]:
    entries = document["entries"]
    names = [entry["name"] for entry in entries if entry["name"]]
    rows = [
        ("layout", document["layout"]),
        ("optimizer", document["optimizer"]),
        ("positions", f"{document['positions']}, {document['with_state']} with state"),
        ("step", _steps(entries)),
        ("names", f"recorded ({document['names']}): {printable(shorten(names))}" if names else "none in the file, positions only"),
    ]
    step = document["facts"].get("global_step")
    if step is not None:
        rows.append(("trainer", f"global_step {step}"))
    return [f"  {title:<9}  {text}" for title, text in rows]


def _steps(entries: Sequence[Mapping[str, Any]]) -> str:
    steps = sorted({entry["step"] for entry in entries if isinstance(entry["step"], (int, float))})
    if not steps:
        return "none recorded"
    return number(float(steps[0])) if len(steps) == 1 else f"{steps[0]:g} to {steps[-1]:g}"


def _groups(document: Mapping[str, Any]) -> list[str]:
    with_state = {entry["position"] for entry in document["entries"] if entry["slots"]}
    rows = [
        (
            group["index"],
            ranges(sorted(group["positions"])),
            sum(1 for position in group["positions"] if position in with_state),
            *(hyper_text(group["hyper"], key) for key in _HYPER),
        )
        for group in document["groups"]
    ]
    return table(rows, ("group", "positions", "with state", *_HYPER))


def _slots(entries: Sequence[Mapping[str, Any]]) -> list[tuple[object, ...]]:
    counted: Counter[tuple[str, str, str, str]] = Counter()
    for entry in entries:
        for name, slot in entry["slots"].items():
            shape = "x".join(map(str, slot["shape"])) or "scalar"
            counted[(name, slot["dtype"], slot["encoding"], shape)] += 1
    ordered = sorted(counted.items(), key=lambda row: (row[0][0], -row[1], row[0][3]))
    shown: list[tuple[object, ...]] = [(*key, count) for key, count in ordered[:24]]
    if len(ordered) > len(shown):
        shown.append((f"(+{len(ordered) - len(shown)} more)", "", "", "", ""))
    return shown


def _fit(fit: Mapping[str, Any]) -> list[str]:
    matched = f"{fit['matched']} of {fit['with_state']} positions with state find a tensor of their shape"
    out = [f"  adapter  {printable(fit['adapter'])}: {matched} ({fit['tensors']} tensors)"]
    for title, left in (("only in the state", fit["only_state"]), ("only in the adapter", fit["only_adapter"])):
        if left:
            out.append(f"    {title}: " + ", ".join(f"{count} of {shape}" for shape, count in list(left.items())[:8]))
    return out


def _values(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    columns = list(next(iter(values.values())))
    rows = [(slot, *(number(stats[column]) for column in columns)) for slot, stats in values.items()]
    return table(rows, ("slot", *columns))
