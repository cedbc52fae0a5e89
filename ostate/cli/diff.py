"""`ostate diff`."""

from __future__ import annotations

import click

from . import PATH, finish
from .screen import reading, show


@click.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH, required=False)
@click.option(
    "--for", "wanted", type=PATH, metavar="NAMES|DIR", help="In place of B: what a resume will train, an adapter's folder or a file of names."
)
@click.option("--base", type=PATH, metavar="DIR|CONFIG", help="With --for: the base model, which tells the order of an adapter's new parameters.")
@click.option("--no-values", is_flag=True, help="Compare names, shapes, steps and settings only; read no numbers.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (schemas/diff-v1.schema.json; with --for: resume-v1).")
def command(a: str, b: str | None, wanted: str | None, base: str | None, no_values: bool, as_json: bool) -> None:
    """What differs between the states A and B? Each may be a named file, a state file or a checkpoint folder.

    Matched by name where both have names, else by position. With --for: why a resume from A refuses or goes wrong, by name, and the
    command that mends it.

    \b
    Exit codes: 0 nothing differs; 1 something does.

    \b
    Example:
        ostate diff lora.ostate.safetensors checkpoint-500
        ostate diff checkpoint-500 checkpoint-1000 --json
        ostate diff lora.ostate.safetensors --for new-adapter/
    """
    if (b is None) == (wanted is None):
        raise click.UsageError("give a second state B, or --for what a resume will train")
    if base is not None and wanted is None:
        raise click.UsageError("--base goes with --for")
    if b is None:
        from ostate.commands import resume
        from ostate.report import resume_text

        with reading("comparing"):
            document = resume.as_document(resume.compare_for(a, wanted, base=base))
        show(document, resume_text.blocks, as_json=as_json)
        finish(not document["same"])
        return
    from ostate.commands import diff as program
    from ostate.report import diff_text

    with reading("comparing"):
        document = program.as_document(program.diff(a, b, values=not no_values))
    show(document, diff_text.blocks, as_json=as_json)
    finish(not document["same"])
