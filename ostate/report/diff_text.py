"""What `ostate diff` says: its document as blocks, what matters most first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ostate.report.blocks import Block, Facts, FindingBlock, Line, Table, cells
from ostate.report.text import number

_ROWS = 12
"""Rows of a table, unless all are asked for."""


def blocks(document: Mapping[str, Any], *, full: bool = False) -> list[Block]:
    """Return what one diff document says; `full` leaves nothing out."""
    most = None if full else _ROWS
    if document["same"]:
        read = f"{document['compared']} moments bit for bit" if document["compared"] else "numbers not read"
        return [Line(f"the same: {document['matched']} parameters matched by {document['matched_by']}, {read}", "good")]
    out: list[Block] = [Line(f"different: {document['matched']} parameters matched by {document['matched_by']}", "warning")]
    if document["compared"]:
        out.append(Facts((("moments", f"{document['equal']} of {document['compared']} equal bit for bit"),)))
    for side in ("a", "b"):
        if document[f"cold_{side}"]:
            out.append(FindingBlock("warning", f"{side.upper()} is cold: every moment that was compared is zero"))
    for side in ("a", "b"):
        if document[f"only_{side}"]:
            out.append(FindingBlock("warning", f"{len(document[f'only_{side}'])} parameters only in {side.upper()}", tuple(document[f"only_{side}"])))
    for row in document["shapes"][:most]:
        out.append(Line(f"  shape  {row['name']}: {row['a']} | {row['b']}"))
    for row in document["slots"][:most]:
        out.append(Line(f"  slots  {row['name']}: only A {', '.join(row['only_a']) or '-'} | only B {', '.join(row['only_b']) or '-'}"))
    steps = Counter((repr(row["a"]), repr(row["b"])) for row in document["steps"])
    out += [Line(f"  step  {a} | {b}  ({count} parameters)") for (a, b), count in steps.most_common(most)]
    out += [Line(f"  {row['key']}  {row['a']} | {row['b']}  ({row['parameters']} parameters)") for row in document["hyper"]]
    if document["values"]:
        rows = tuple(cells(row["name"], row["slot"], number(row["relative"]), number(row["cosine"])) for row in document["values"][:most])
        out += [Line(), Table(("parameter", "slot", "|b-a|/|a|", "cosine"), rows)]
        if most is not None and len(document["values"]) > most:
            out.append(Line(f"  … and {len(document['values']) - most} more (-v shows all)", "dim"))
    return out
