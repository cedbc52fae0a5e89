"""Plain text for people: tables without a library, names shortened by what they share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_MARK = {"note": "note", "warning": "WARNING", "error": "ERROR"}
_ORDER = {"error": 0, "warning": 1, "note": 2}


def table(rows: Sequence[Sequence[object]], head: Sequence[str], indent: str = "  ") -> list[str]:
    """Return the lines of a table with aligned columns; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(title), *(len(row[i]) for row in cells)) if cells else len(title) for i, title in enumerate(head)]
    right = [bool(cells) and all(re.fullmatch(r"-?[\d.,e+-]+%?|-", row[i]) for row in cells) for i in range(len(head))]

    def line(values: Sequence[str]) -> str:
        padded = (value.rjust(width) if to_right else value.ljust(width) for value, width, to_right in zip(values, widths, right))
        return (indent + "  ".join(padded)).rstrip()

    return [line(list(head)), *(line(row) for row in cells)]


def document_findings(findings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return findings (as the schemas describe them) as lines, the worst first: what, which, and what to do."""
    lines = []
    for finding in sorted(findings, key=lambda one: _ORDER[one["severity"]]):
        lines.append(f"{_MARK[finding['severity']]}: {printable(finding['text'])}")
        if finding["names"]:
            lines.append(f"  which: {printable(shorten(finding['names']))}")
        if finding["fix"]:
            lines.append(f"  fix: {printable(finding['fix'])}")
    return lines


def hyper_text(hyper: Mapping[str, Any], key: str) -> str:
    """Return one hyperparameter as text, `-` when the file does not have it."""
    value = hyper.get(key)
    if value is None:
        return "-"
    if isinstance(value, (list, tuple)):
        return ",".join(number(one) for one in value)
    return number(value)


def number(value: object) -> str:
    """Return a number as short as it can be read back."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def ranges(positions: Sequence[int]) -> str:
    """Return `0-3, 7, 9-11` for sorted positions."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][1] + 1:
            runs[-1][1] = position
        else:
            runs.append([position, position])
    parts = [f"{a}" if a == b else f"{a}-{b}" for a, b in runs]
    return ", ".join(parts[:6]) + (f", … ({len(parts) - 6} more runs)" if len(parts) > 6 else "") if parts else "none"


def shorten(names: Sequence[str], most: int = 6) -> str:
    """Return names folded by what they share: `layers.{0..31}.self_attn.{q,v}_proj.lora_{A,B}.weight`.

    Names that differ in one dotted component are joined, component by component; what cannot be joined is listed, at most `most` of them.
    """
    folded = {tuple(name.split(".")) for name in names}
    width = max((len(parts) for parts in folded), default=0)
    for column in range(width):
        folded = _fold(folded, column)
    texts = sorted(".".join(parts) for parts in folded)
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f", … ({more} more)" if more > 0 else "")


def _fold(names: set[tuple[str, ...]], column: int) -> set[tuple[str, ...]]:
    by_rest: dict[tuple[str, ...], set[str]] = {}
    for parts in names:
        if column < len(parts):
            by_rest.setdefault((*parts[:column], "\0", *parts[column + 1 :]), set()).add(parts[column])
        else:
            by_rest.setdefault(parts, set())
    out = set()
    for rest, values in by_rest.items():
        out.add(tuple(_joined(values) if part == "\0" else part for part in rest))
    return out


def _joined(values: set[str]) -> str:
    if len(values) == 1:
        return next(iter(values))
    if all(value.isdigit() for value in values):
        return "{" + ranges(sorted(map(int, values))).replace("-", "..").replace(", ", ",") + "}"
    first = sorted(values)
    head = _common(first)
    tail = _common([value[len(head) :][::-1] for value in first])[::-1]
    middle = ",".join(value[len(head) : len(value) - len(tail)] for value in first)
    return f"{head}{{{middle}}}{tail}"


def _common(values: Sequence[str]) -> str:
    low, high = min(values), max(values)
    size = next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))
    return low[:size]


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return `text` with control characters and terminal escapes made visible, for names that come from a file."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)
