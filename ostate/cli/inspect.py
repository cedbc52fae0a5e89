"""`ostate inspect`."""

from __future__ import annotations

import click

from . import PATH, finish
from .options import Which
from .options import checksum as with_checksum
from .screen import reading, show


@click.command()
@click.argument("path", type=PATH)
@click.option("--adapter", metavar="DIR|FILE", help="Also tell how the state fits this adapter.")
@click.option("--values", is_flag=True, help="Read every number once: zeros, tiny, negative, not finite, ranges.")
@click.option("--state", metavar="FILE", help="Which file of the folder is the state, where several could be.")
@click.option("--optimizer", type=Which(), metavar="K|NAME", help="Which optimizer, where there are several: its number from 0, or its name.")
@with_checksum
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (schemas/inspect-v1.schema.json).")
def command(path: str, adapter: str | None, values: bool, state: str | None, optimizer: int | str | None, checksum: bool, as_json: bool) -> None:
    """Show what the optimizer state at PATH holds. Names nothing, writes nothing, runs nothing of the file.

    \b
    Exit codes: 0 notes at most; 1 a person should look; 3 not readable.

    \b
    Example:
        ostate inspect checkpoint-500
        ostate inspect checkpoint-500/optimizer.pt --adapter checkpoint-500 --json
    """
    from ostate.commands import inspect as inspection
    from ostate.read.pickle.collector import Paused
    from ostate.report import inspection_text

    with Paused():
        with reading("reading"):
            seen = inspection.inspect(path, adapter=adapter, values=values, state=state, optimizer=optimizer, checksum=checksum)
        show(inspection.as_document(seen, digests=as_json), inspection_text.blocks, as_json=as_json)
    finish(any(finding.severity != "note" for finding in seen.findings))
