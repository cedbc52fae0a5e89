"""What `ostate validate` says: its document as blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ostate.report.blocks import Block, Facts, Line, found

if TYPE_CHECKING:
    from ostate.core.documents import ValidateDocument


def blocks(document: ValidateDocument, *, full: bool = False) -> list[Block]:  # noqa: ARG001
    """Return what one validate document says."""
    read = "every byte was read" if document["deep"] else "header, index and ranges; --deep reads every byte"
    out: list[Block] = [Line(f"sound ({read})", "good") if document["sound"] else Line("not sound", "error")]
    if document["parameters"] is not None:
        verdict = document["verdict"] or "not recorded"
        by_itself = " as an order" if verdict == "verified" else f", {len(document['undecided'])} names undecided"
        left = by_itself if document["undecided"] else ""
        if gone := len(document.get("left_out", ())):
            left += f", {gone} position{'s' * (gone != 1)} left out"
        read_from = document.get("read")
        rows = [] if read_from is None or read_from == document["source"] else [("read", read_from)]
        rows += [("optimizer", str(document["optimizer"])), ("parameters", str(document["parameters"])), ("names", verdict + left)]
        rows += [("assumed", text) for text in document.get("assumed", ())]
        out.append(Facts(tuple(rows)))
    if document["findings"]:
        out += [Line(), *found(document["findings"])]
    return out
