"""`ostate validate`."""

from __future__ import annotations

import sys

import click

from . import PATH, finish
from .screen import reading, show


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
    from ostate.report import validation_text

    with reading("reading"):
        done = validation.validate(file, deep=deep)
    show(validation.as_document(done), validation_text.blocks, as_json=as_json)
    if not done.sound:
        sys.exit(3)
    finish(any(finding.severity != "note" for finding in done.findings))
