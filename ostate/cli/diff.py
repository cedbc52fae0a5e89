"""`ostate diff`."""

from __future__ import annotations

import click

from ostate.report import diff_text, resume_text

from . import MODEL, PATH, finish
from .screen import reading, show

_BOTH_OR_NEITHER = "pass a second state B, or --for what a resume will train"


@click.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH, required=False)
@click.option(
    "--for", "wanted", type=PATH, metavar="NAMES|DIR", help="Instead of B: what a resume will train (an adapter folder, or a file of names)."
)
@click.option("--base", type=MODEL, metavar="DIR|CONFIG|ORG/NAME", help="With --for: the base model, for the order of an adapter's new parameters.")
@click.option("--no-values", is_flag=True, help="Compare names, shapes, steps and hyperparameters only; read no tensor values.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (schemas/diff-v1.schema.json; with --for: resume-v1).")
def command(a: str, b: str | None, wanted: str | None, base: str | None, no_values: bool, as_json: bool) -> None:
    """Compare the states A and B. Each may be a named file, a state file or a checkpoint folder.

    Parameters are matched by name if both have names, else by position. With --for: which parameters a resume from A adds, lacks or
    reorders, by name, and the command that fixes it.

    \b
    Exit codes: 0 no difference; 1 there are differences; 3 refused.

    \b
    Example:
        ostate diff lora.ostate.safetensors checkpoint-500
        ostate diff checkpoint-500 checkpoint-1000 --json
        ostate diff lora.ostate.safetensors --for new-adapter/
    """
    if b is None:
        if wanted is None:
            raise click.UsageError(_BOTH_OR_NEITHER)
        from ostate.commands import resume

        with reading("comparing"):
            document = resume.as_document(resume.compare_for(a, wanted, base=base))
        show(document, resume_text.blocks, as_json=as_json)
        finish(not document["same"])
        return
    if wanted is not None:
        raise click.UsageError(_BOTH_OR_NEITHER)
    if base is not None:
        raise click.UsageError("--base goes with --for")
    from ostate.commands import diff as program

    with reading("comparing"):
        found = program.as_document(program.diff(a, b, values=not no_values))
    show(found, diff_text.blocks, as_json=as_json)
    finish(not found["same"])
