"""`ostate validate`."""

from __future__ import annotations

import sys

import click

from . import PATH, finish
from .screen import progress, show


@click.command()
@click.argument("file", type=PATH)
@click.option("--deep", is_flag=True, help="Read every byte: digests, and the rules on numbers.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (schemas/validate-v1.schema.json).")
def command(file: str, deep: bool, as_json: bool) -> None:
    """Is FILE a sound named state? Schema, shapes, offsets, names, groups, ranges; with --deep also every byte.

    \b
    Exit codes: 0 sound; 1 sound, but a person should look; 3 not sound.

    \b
    Example:
        ostate validate lora.ostate.safetensors
        ostate validate lora.ostate.safetensors --deep --json
    """
    from ostate.commands import validate as validation
    from ostate.core.files import size_of
    from ostate.report import validation_text

    with progress("reading") as step:
        read = 0

        def told(more: int) -> None:
            nonlocal read
            read += more
            if step is not None:
                step(read, max(read, total))

        total = size_of(file) if deep else 0
        done = validation.validate(file, deep=deep, progress=told)
    show(validation.as_document(done), validation_text.blocks, as_json=as_json)
    if not done.sound:
        sys.exit(3)
    finish(any(finding.severity != "note" for finding in done.findings))
