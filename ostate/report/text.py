"""Plain text for people and pipes: tables without a library, names shortened by what they share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

from ostate.report.blocks import Block, Facts, FindingBlock, Line, Table

MARK = {"note": "note", "warning": "WARNING", "error": "ERROR"}
_NUMBER = re.compile(r"-?[\d.,e+-]+%?|-|nan|-?inf")
_DIGITS = "0123456789"
_WHOLE = re.compile(r"0|[1-9][0-9]{0,17}")


def plain(blocks: Iterable[Block], *, most: int = 6) -> list[str]:
    """Return blocks as lines, never wrapped; a finding names at most `most` folded names (0: all)."""
    lines: list[str] = []
    for block in blocks:
        if isinstance(block, Line):
            lines.append(printable(block.text))
        elif isinstance(block, Facts):
            lines += facts(block)
        elif isinstance(block, Table):
            lines += table(block.rows, block.head)
        else:
            lines += finding(block, most=most)
    return lines


def facts(block: Facts) -> list[str]:
    """Return title and text, a line each, the texts aligned."""
    width = max((len(title) for title, _ in block.rows), default=0)
    return [f"  {title:<{width}}  {printable(text)}" for title, text in block.rows]


def finding(block: FindingBlock, *, most: int = 6) -> list[str]:
    """Return a finding as what, which, fix."""
    lines = [f"{MARK[block.severity]}: {printable(block.text)}"]
    if block.names:
        lines.append(f"  which: {printable(shorten(block.names, most, block.more))}")
    if block.fix:
        lines.append(f"  fix: {printable(block.fix)}")
    return lines


def table(rows: Sequence[Sequence[object]], head: Sequence[str], indent: str = "  ") -> list[str]:
    """Return the lines of a table with aligned columns; numbers to the right."""
    shown = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(title), *(len(row[i]) for row in shown)) if shown else len(title) for i, title in enumerate(head)]
    right = numeric(shown, len(head))

    def line(values: Sequence[str]) -> str:
        padded = (value.rjust(width) if to_right else value.ljust(width) for value, width, to_right in zip(values, widths, right))
        return (indent + "  ".join(padded)).rstrip()

    return [line(list(head)), *(line(row) for row in shown)]


def numeric(rows: Sequence[Sequence[str]], columns: int) -> list[bool]:
    """Tell for each column whether all its cells are numbers, which stand to the right."""
    return [bool(rows) and all(_NUMBER.fullmatch(row[i]) for row in rows) for i in range(columns)]


def hyper_text(hyper: Mapping[str, object], key: str) -> str:
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


def shorten(names: Sequence[str], most: int = 6, further: int = 0) -> str:
    """Return names folded by what they share: `layers.{0..31}.self_attn.{q,v}_proj.lora_{A,B}.weight`.

    Names that differ in one dotted component are joined, component by component; what cannot be joined is listed, at most `most` of them (0: all).
    `further` names are not there to be listed, and are counted.
    """
    folded = {tuple(name.split(".")) for name in names}
    width = max(map(len, folded), default=0)
    several = [len(set(parts)) > 1 for parts in zip_longest(*folded)]  # folding one column changes no other
    for column in range(width):
        if several[column]:
            folded = _fold(folded, column)
    texts = sorted(".".join(parts) for parts in folded)
    more = max(len(texts) - most if most else 0, 0) + further
    return ", ".join(texts[: most or None]) + (f", … ({more} more)" if more > 0 else "")


def _fold(names: set[tuple[str, ...]], column: int) -> set[tuple[str, ...]]:
    by_rest: dict[tuple[str, ...], set[str]] = {}
    short = {parts for parts in names if len(parts) <= column}
    for parts in names - short if short else names:
        by_rest.setdefault(parts[:column] + parts[column + 1 :], set()).add(parts[column])
    joined = {values: _joined(values) for values in set(map(frozenset, by_rest.values()))}  # every layer has the same modules
    return short | {(*rest[:column], joined[frozenset(values)], *rest[column:]) for rest, values in by_rest.items()}


def _joined(values: frozenset[str]) -> str:
    if len(values) == 1:
        return next(iter(values))
    if all(_WHOLE.fullmatch(value) for value in values):
        return _counted(values)
    first = sorted(values)
    head = _common(first)
    tail = _common([value[len(head) :][::-1] for value in first])[::-1]
    whole = head.rstrip(_DIGITS), tail.lstrip(_DIGITS)  # `block{1..12}`, not `block1{,0,1,2}`
    counted = [value[len(whole[0]) : len(value) - len(whole[1])] for value in first]
    if all(_WHOLE.fullmatch(value) for value in counted):
        return f"{whole[0]}{_counted(counted)}{whole[1]}"
    head, tail = _without_torn_word(head), _without_torn_word(tail[::-1])[::-1]
    middle = ",".join(value[len(head) : len(value) - len(tail)] for value in first)
    return f"{head}{{{middle}}}{tail}"


def _without_torn_word(text: str) -> str:
    """Return text without a part of a word at its end, which names that are joined do not share: `{fc1,final_norm}`, not `f{c1,inal_norm}`."""
    size = len(text)
    while size and text[size - 1].isalnum():
        size -= 1
    return text[:size]


def _counted(values: Iterable[str]) -> str:
    return "{" + ranges(sorted(map(int, values))).replace("-", "..").replace(", ", ",") + "}"


def _common(values: Sequence[str]) -> str:
    low, high = min(values), max(values)
    size = next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))
    return low[:size]


def shared_prefix(names: Sequence[str]) -> str:
    """Return the dotted components, two at least, that all of several names begin with, with the last dot; empty where there are none."""
    if len(names) < 2:
        return ""
    split = [name.split(".")[:-1] for name in names]
    count = next((i for i, parts in enumerate(zip(*split)) if len(set(parts)) > 1), min(map(len, split)))
    return ".".join([*split[0][:count], ""]) if count > 1 else ""


def printable(text: str) -> str:
    """Return `text` with whatever is not a visible character or a plain space made visible, as Python would write it.

    Names come from files: terminal escapes, line breaks, direction marks, zero-width signs and lone surrogates must not reach a screen.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
