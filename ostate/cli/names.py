"""`ostate names`."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import click

from ostate.report.blocks import Line
from ostate.report.text import printable

from . import PATH, finish
from .options import checksum, naming, options_of
from .screen import reading, say, write

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ostate.commands.options import NamingFields


@click.command()
@click.argument("path", type=PATH)
@naming
@checksum
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated, with a header.")
def command(path: str, as_csv: bool, no_evidence: bool, **chosen: Unpack[NamingFields]) -> None:
    """Print position, name and shape, one line each: the order that `repair` would write.

    \b
    Exit codes: 0 all names are proven; 1 some are not; 3 refused.

    \b
    Example:
        ostate names checkpoint-500
        ostate names checkpoint-500 --csv > names.csv
    """
    from ostate.commands.repair import names_and_order

    with reading("proving"):
        found, order = names_and_order(path, options=options_of(no_evidence, chosen))
    rows = [(position, printable(name), shape) for position, name, shape in found]
    if as_csv:
        text = io.StringIO()
        csv.writer(text).writerows([("position", "name", "shape"), *rows])
        write(text.getvalue().removesuffix("\n"))
    else:
        write("\n".join(f"{position}\t{name}\t{shape}" for position, name, shape in rows))
    say([Line(f"assumed, not recorded: {text}") for text in order.assumed], err=True)
    finish(not order.proven)
