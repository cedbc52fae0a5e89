"""What `ostate diff STATE --for …` says: why a resume refuses, by name, and the command that mends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ostate.report.blocks import Block, Facts, FindingBlock, Line, found

if TYPE_CHECKING:
    from ostate.core.documents import MovedRow, ResumeDocument

_ROWS = 8
"""Rows of one kind, unless all are asked for."""


def blocks(document: ResumeDocument, *, full: bool = False) -> list[Block]:
    """Return what one document says; `full` leaves nothing out."""
    if document["same"]:
        return [Line("same parameters in the same order: the state loads as it is", "good"), *found(document["findings"])]
    most = None if full else _ROWS
    moved, renamed, reshaped = reordered(document["moved"]), document["renamed"], document["reshaped"]
    counted = {
        "more": len(document["adds"]),
        "fewer": len(document["lacks"]),
        "renamed": len(renamed),
        "of another shape": len(reshaped),
        "in another order": len(moved),
    }
    said = ", ".join(f"{count} {word}" for word, count in counted.items() if count)
    groups = document["groups"]
    out: list[Block] = [
        Line(f"other parameters: {said or 'other groups'}", "warning"),
        Facts((("groups", f"{groups['state']} in the state, {groups['to_come']} in the new optimizer"), ("as it is", document["by_position"]))),
        Line(),
    ]
    if document["adds"]:
        out.append(FindingBlock("note", f"{len(document['adds'])} parameters that the state lacks", tuple(row["name"] for row in document["adds"])))
    if document["lacks"]:
        fix = "if they should be trained, they are frozen now: load with is_trainable=True, or set requires_grad"
        out.append(FindingBlock("note", f"{len(document['lacks'])} parameters of the state that will not be trained", tuple(document["lacks"]), fix))
    out += [Line(f"  renamed  {row['state']} -> {row['to_come']}") for row in renamed[:most]]
    out += [Line(f"  shape  {row['name']}: {row['state']} -> {row['to_come']}") for row in reshaped[:most]]
    out += [Line(f"  position  {row['name']}: {row['state']} -> {row['to_come']}") for row in moved[:most]]
    left = sum(max(0, count - _ROWS) for count in (len(renamed), len(reshaped), len(moved))) if most else 0
    if left:
        out.append(Line(f"  … and {left} more (-v shows all)", "dim"))
    out += found(document["findings"])
    if document["command"]:
        out += [Line(), Line("this writes an optimizer.pt that fits:"), Line(f"  {document['command']}", "command")]
    return out


def reordered(moved: Sequence[MovedRow]) -> list[MovedRow]:
    """Return the rows, or none where all that moved kept its order: others came before it, or went."""
    to_come = [row["to_come"] for row in sorted(moved, key=lambda row: row["state"])]
    return [] if to_come == sorted(to_come) else list(moved)
