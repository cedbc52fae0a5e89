"""What `ostate export` says: its document as blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ostate.report.blocks import Block, Line, found

if TYPE_CHECKING:
    from ostate.core.documents import ExportDocument


def blocks(document: ExportDocument, *, full: bool = False) -> list[Block]:  # noqa: ARG001
    """Return what one export document says; what is lost comes first."""
    out: list[Block] = [*found(document["findings"])]
    if out:
        out.append(Line())
    if document["out"] is None:
        return [*out, Line("nothing written (--dry-run)", "dim")]
    return [*out, Line(f"wrote {document['out']}: {document['parameters']} parameters for {document['to']}", "good")]
