"""What `ostate inspect` says: the inspect document as blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ostate.core.tensors import shape_text
from ostate.report.blocks import Block, Facts, Line, Table, cells, found, read_rows
from ostate.report.text import hyper_text, number, plain, printable, ranges, shorten

if TYPE_CHECKING:
    from ostate.core.documents import EntryRow, FitRow, InspectDocument

_HYPER = ("lr", "initial_lr", "betas", "eps", "weight_decay")
_ROWS = 24
"""Rows of the slot table before it is cut, unless all are asked for."""


def lines(document: InspectDocument) -> list[str]:
    """Return the plain lines for one inspect document."""
    return plain(blocks(document))


def blocks(document: InspectDocument, *, full: bool = False) -> list[Block]:
    """Return what one inspect document says; `full` leaves nothing out."""
    entries = document["entries"]
    out: list[Block] = [Line(document["source"], "title"), _summary(document, full)]
    if document["findings"]:
        out += [Line(), *found(document["findings"])]
    out += [Line(), _groups(document)]
    if any(entry["slots"] for entry in entries):
        out += [Line(), *_slots(entries, full)]
    if document["fit"]:
        out += [Line(), *_fit(document["fit"], full)]
    if document["values"]:
        out += [Line(), _values(document["values"])]
    following = document.get("next")
    if following is not None:
        out += [Line(), Line(following["risk"]), Line(f"next: {following['command']}", "command")]
    return out


def _summary(document: InspectDocument, full: bool) -> Facts:
    entries = document["entries"]
    names = [entry["name"] for entry in entries if entry["name"]]
    rows = [
        *read_rows(document.get("read"), document.get("not_read", ())),
        ("layout", document["layout"]),
        ("optimizer", document["optimizer"]),
        ("positions", f"{document['positions']}, {document['with_state']} with state"),
        ("step", _steps(entries)),
        ("names", f"recorded ({document['names']}): {shorten(names, 0 if full else 6)}" if names else "none in the file, positions only"),
    ]
    step = document["facts"].get("global_step")
    if step is not None:
        rows.append(("trainer", f"global_step {step}"))
    return Facts(tuple(rows))


def _steps(entries: Sequence[EntryRow]) -> str:
    steps = sorted({entry["step"] for entry in entries if isinstance(entry["step"], (int, float))})
    if not steps:
        return "none recorded"
    return number(float(steps[0])) if len(steps) == 1 else f"{steps[0]:g} to {steps[-1]:g}"


def _groups(document: InspectDocument) -> Table:
    with_state = {entry["position"] for entry in document["entries"] if entry["slots"]}
    rows = [
        cells(
            group["index"],
            ranges(sorted(group["positions"])),
            sum(1 for position in group["positions"] if position in with_state),
            *(hyper_text(group["hyper"], key) for key in _HYPER),
        )
        for group in document["groups"]
    ]
    return Table(("group", "positions", "state", *_HYPER), tuple(rows))


def _slots(entries: Sequence[EntryRow], full: bool) -> list[Block]:
    kinds = Counter((name, slot["dtype"], slot["encoding"], tuple(slot["shape"])) for entry in entries for name, slot in entry["slots"].items())
    counted = {(name, dtype, encoding, shape_text(shape)): count for (name, dtype, encoding, shape), count in kinds.items()}
    ordered = sorted(counted.items(), key=lambda row: (row[0][0], -row[1], row[0][3]))
    shown = ordered if full else ordered[:_ROWS]
    out: list[Block] = [Table(("slot", "dtype", "encoding", "shape", "count"), tuple(cells(*key, count) for key, count in shown))]
    if len(ordered) > len(shown):
        out.append(Line(f"  ({len(ordered) - len(shown)} more rows: -v shows all)", "dim"))
    return out


def _fit(fit: FitRow, full: bool) -> list[Block]:
    matched = f"{fit['matched']} of {fit['with_state']} positions with state match a tensor by shape"
    whole = fit["matched"] == fit["with_state"] == fit["tensors"]
    out: list[Block] = [Line(f"  adapter  {printable(fit['adapter'])}: {matched} ({fit['tensors']} tensors)", "" if whole else "warning")]
    out.append(Line("           shapes only: `ostate verify` compares the tensor values", "dim"))
    for title, left in (("only in the state", fit["only_state"]), ("only in the adapter", fit["only_adapter"])):
        if left:
            out.append(Line(f"    {title}: " + ", ".join(f"{count} of {shape}" for shape, count in list(left.items())[: None if full else 8])))
    return out


def _values(values: Mapping[str, Mapping[str, object]]) -> Table:
    columns = tuple(next(iter(values.values())))
    return Table(("slot", *columns), tuple(cells(slot, *(number(stats[column]) for column in columns)) for slot, stats in values.items()))
