"""The same blocks for a terminal: colour, rules, and a width that is kept without ever breaking a name.

rich is imported here and nowhere else, and only when a terminal is there to see it.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from ostate.report.blocks import Block, Facts, FindingBlock, Line, Table
from ostate.report.text import MARK, numeric, printable, shared_prefix, shorten

_STYLE = {"": "", "title": "bold", "good": "green", "warning": "yellow", "error": "bold red", "dim": "dim", "command": "green"}
_SEVERITY = {"note": "cyan", "warning": "yellow", "error": "bold red"}


_TITLED = re.compile(r"(?<! ) +\S+ {2,}")
"""How a line begins that is a title and a text, as a row of facts is: the text goes on under itself."""


def rendered(blocks: Iterable[Block], *, width: int, colour: bool, most: int = 6) -> str:
    """Return blocks as a terminal shows them.

    Args:
        blocks: what to say.
        width: columns of the terminal.
        colour: False under NO_COLOR: no escape is written at all.
        most: folded names that a finding shows (0: all).
    """
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=not colour,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    for block in blocks:
        for text in _texts(block, width, most):
            console.print(text, soft_wrap=isinstance(text, Text))
    return out.getvalue()


def _texts(block: Block, width: int, most: int) -> list[Text | Grid]:
    if isinstance(block, Line) and block.tone == "command":
        return [Text(printable(block.text), _STYLE[block.tone])]
    if isinstance(block, Line):
        text = printable(block.text)
        titled = _TITLED.match(text)
        return _wrapped(text, width, _STYLE[block.tone], rest=" " * titled.end() if titled else None)
    if isinstance(block, Facts):
        return [text for row in block.rows for text in _fact(row, max(len(title) for title, _ in block.rows), width)]
    if isinstance(block, FindingBlock):
        return _finding(block, width, most)
    return _table(block, width)


def _fact(row: tuple[str, str], titles: int, width: int) -> list[Text | Grid]:
    title, text = row
    return _wrapped(printable(text), width, "", first=f"  {title:<{titles}}  ", first_style="dim", rest=" " * (titles + 4))


def _finding(block: FindingBlock, width: int, most: int) -> list[Text | Grid]:
    out = _wrapped(printable(block.text), width, "", first=f"{MARK[block.severity]}: ", first_style=_SEVERITY[block.severity], rest="  ")
    if block.names:
        out += _wrapped(printable(shorten(block.names, most, block.more)), width, "", first="  which: ", first_style="dim", rest="    ")
    if block.fix:
        out += _wrapped(printable(block.fix), width, "", first="  fix: ", first_style="dim", rest="    ")
    return out


def _wrapped(text: str, width: int, style: str, *, first: str = "", first_style: str = "", rest: str | None = None) -> list[Text | Grid]:
    """Break at spaces only. A name longer than the line stays whole: the terminal may fold it, a copy of it stays right."""
    indent = text[: len(text) - len(text.lstrip())]
    lines = textwrap.wrap(
        text.strip(),
        max(width, 20),
        initial_indent=first or indent,
        subsequent_indent=rest if rest is not None else indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    if not lines:
        return [Text(first.rstrip(), first_style)]
    out: list[Text | Grid] = []
    for number, line in enumerate(lines):
        styled = Text(line, style)
        if number == 0 and first:
            styled.stylize(first_style, 0, len(first.rstrip()))
        out.append(styled)
    return out


def _table(block: Table, width: int) -> list[Text | Grid]:
    rows = [[printable(cell) for cell in row] for row in block.rows]
    lead: list[Text | Grid] = []
    if _needed(block.head, rows) > width and (prefix := shared_prefix([row[0] for row in rows])):
        lead = _wrapped(f"… stands for {prefix}", width, "dim", first="  ", rest="    ")
        rows = [[f"…{row[0].removeprefix(prefix)}", *(cell.replace(prefix, "…", 1) for cell in row[1:])] for row in rows]
    if _needed(block.head, rows) > width:
        return [*lead, *_stacked(block.head, rows, width)]
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False, header_style="bold")
    for title, right in zip(block.head, numeric(rows, len(block.head))):
        grid.add_column(title, justify="right" if right else "left", no_wrap=True, overflow="crop")
    for row in rows:
        grid.add_row(*row)
    return [*lead, grid]


def _needed(head: tuple[str, ...], rows: list[list[str]]) -> int:
    """Return the columns of the terminal that a table takes."""
    widths = [max([cell_len(head[i]), *(cell_len(row[i]) for row in rows)]) for i in range(len(head))]
    return sum(widths) + 3 * (len(widths) - 1)


def _stacked(head: tuple[str, ...], rows: list[list[str]], width: int) -> list[Text | Grid]:
    """A table too wide for the terminal: each row as a small list, its first cell on top."""
    out: list[Text | Grid] = []
    for row in rows:
        out += _wrapped(row[0], width, "bold", first=f"  {head[0]} ", first_style="dim", rest="    ")
        pairs = [f"{title} {cell}" for title, cell in zip(head[1:], row[1:]) if cell not in ("", "-")]
        out += _wrapped(",  ".join(pairs), width, "", first="    ", rest="    ")
    return out
