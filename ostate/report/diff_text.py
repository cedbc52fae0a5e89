"""What `ostate diff` says: its document as blocks, what matters most first."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ostate.report.blocks import Block, Facts, FindingBlock, Line, Table, cells
from ostate.report.text import number

if TYPE_CHECKING:
    from ostate.core.documents import DiffDocument

_ROWS = 12
"""Rows of a table, unless all are asked for."""


def blocks(document: DiffDocument, *, full: bool = False) -> list[Block]:
    """Return what one diff document says; `full` leaves nothing out."""
    most = None if full else _ROWS
    if document["same"]:
        read = f"{document['compared']} moments bit for bit" if document["compared"] else "numbers not read"
        return [Line(f"the same: {document['matched']} parameters matched by {document['matched_by']}, {read}", "good")]
    out: list[Block] = [Line(f"different: {document['matched']} parameters matched by {document['matched_by']}", "warning")]
    if document["compared"]:
        out.append(Facts((("moments", f"{document['equal']} of {document['compared']} equal bit for bit"),)))
    for side, cold in (("A", document["cold_a"]), ("B", document["cold_b"])):
        if cold:
            out.append(FindingBlock("warning", f"{side} is cold: every moment that was compared is zero"))
    for side, only in (("A", document["only_a"]), ("B", document["only_b"])):
        if only:
            out.append(FindingBlock("warning", f"{len(only)} parameters only in {side}", tuple(only)))
    for row in document["shapes"][:most]:
        out.append(Line(f"  shape  {row['name']}: {row['a']} | {row['b']}"))
    for slots in document["slots"][:most]:
        out.append(Line(f"  slots  {slots['name']}: only A {', '.join(slots['only_a']) or '-'} | only B {', '.join(slots['only_b']) or '-'}"))
    steps = Counter((repr(row["a"]), repr(row["b"])) for row in document["steps"])
    out += [Line(f"  step  {a} | {b}  ({count} parameters)") for (a, b), count in steps.most_common(most)]
    out += [Line(f"  {row['key']}  {row['a']} | {row['b']}  ({row['parameters']} parameters)") for row in document["hyper"]]
    if document["values"]:
        rows = tuple(cells(row["name"], row["slot"], number(row["relative"]), number(row["cosine"])) for row in document["values"][:most])
        out += [Line(), Table(("parameter", "slot", "|b-a|/|a|", "cosine"), rows)]
        if most is not None and len(document["values"]) > most:
            out.append(Line(f"  … and {len(document['values']) - most} more (-v shows all)", "dim"))
    return out
