"""`ostate verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ostate.core.system import keep_freed_memory
from ostate.report import verdict_text

from . import PATH, finish
from .options import checksum, naming, options_of
from .screen import reading, show

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ostate.commands.options import NamingFields


@click.command()
@click.argument("path", type=PATH)
@naming
@checksum
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (schemas/verify-v1.schema.json).")
def command(path: str, as_json: bool, no_evidence: bool, **chosen: Unpack[NamingFields]) -> None:
    """Check that the state at PATH belongs to the adapter, under its names. Read-only.

    \b
    Exit codes: 0 proven; 1 not proven, or only in part; 3 contradicted.

    \b
    Example:
        ostate verify lora.ostate.safetensors --adapter checkpoint-500
        ostate verify checkpoint-500
    """
    keep_freed_memory()
    from ostate.commands import documents, repair

    with reading("proving"):
        found = repair.verify(path, options=options_of(no_evidence, chosen))
    show(documents.verify_document(path, found), verdict_text.blocks, as_json=as_json)
    finish(not found.proven)
