"""`ostate inspect`."""

from __future__ import annotations

import click

from ostate.report import inspection_text

from . import PATH, each
from .options import Which
from .options import checksum as with_checksum
from .screen import reading, show


@click.command()
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="PATH...")
@click.option("--adapter", metavar="DIR|FILE", help="Also compare the shapes with this adapter's.")
@click.option("--values", is_flag=True, help="Read all tensor values: count zeros, tiny, negative and non-finite ones; ranges.")
@click.option("--state", metavar="FILE", help="The state file, if the folder holds several.")
@click.option("--optimizer", type=Which(), metavar="K|NAME", help="Which optimizer, if there are several: its index from 0, its name, or all.")
@with_checksum
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (schemas/inspect-v1.schema.json).")
def command(
    paths: tuple[str, ...], adapter: str | None, values: bool, state: str | None, optimizer: int | str | None, checksum: bool, as_json: bool
) -> None:
    """Show what the optimizer state at PATH holds. Read-only. Never executes code from the file.

    Several PATHs are shown one after another; with --json a document each.

    \b
    Exit codes: 0 notes at most; 1 completed with warnings; 3 cannot be read.

    \b
    Example:
        ostate inspect checkpoint-500
        ostate inspect checkpoint-500/optimizer.pt --adapter checkpoint-500 --json
    """
    from ostate.commands import inspect as inspection

    def one(path: str) -> int:
        with reading("reading"):
            seen = inspection.inspect(path, adapter=adapter, values=values, state=state, optimizer=optimizer, checksum=checksum)
        show(inspection.as_document(seen, digests=as_json), inspection_text.blocks, as_json=as_json)
        return int(any(finding.severity != "note" for finding in seen.findings))

    each(paths, one)
