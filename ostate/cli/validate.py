"""`ostate validate`."""

from __future__ import annotations

import click

from ostate.report import validation_text
from ostate.report.blocks import Line

from . import PATH, each
from .screen import reading, say, show


@click.command()
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FILE...")
@click.option("--deep", is_flag=True, help="Read every byte: check digests and tensor values.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (schemas/validate-v1.schema.json).")
def command(files: tuple[str, ...], deep: bool, as_json: bool) -> None:
    """Check that FILE is a sound named state: schema, shapes, offsets, names, groups, ranges; with --deep also every byte.

    Several FILEs are checked one after another; with --json a document each.

    \b
    Exit codes: 0 sound; 1 sound, with warnings; 3 not sound.

    \b
    Example:
        ostate validate lora.ostate.safetensors
        ostate validate lora.ostate.safetensors --deep --json
    """
    from ostate.commands import validate as validation

    def one(file: str) -> int:
        with reading("reading"):
            done = validation.validate(file, deep=deep)
        if len(files) > 1 and not as_json:
            say([Line(file, "title")])
        show(validation.as_document(done), validation_text.blocks, as_json=as_json)
        return int(any(finding.severity != "note" for finding in done.findings)) if done.sound else 3

    each(files, one)
