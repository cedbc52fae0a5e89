"""`ostate diff`."""

from __future__ import annotations

import click

from . import PATH, finish
from .screen import reading, show


@click.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--no-values", is_flag=True, help="Compare names, shapes, steps and settings only; read no numbers.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (schemas/diff-v1.schema.json).")
def command(a: str, b: str, no_values: bool, as_json: bool) -> None:
    """What differs between the states A and B? Each may be a named file, a state file or a checkpoint folder.

    Matched by name where both have names, else by position.

    \b
    Exit codes: 0 nothing differs; 1 something does.

    \b
    Example:
        ostate diff lora.ostate.safetensors checkpoint-500
        ostate diff checkpoint-500 checkpoint-1000 --json
    """
    from ostate.commands import diff as program
    from ostate.report import diff_text

    with reading("comparing"):
        document = program.as_document(program.diff(a, b, values=not no_values))
    show(document, diff_text.blocks, as_json=as_json)
    finish(not document["same"])
