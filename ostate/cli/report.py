"""`ostate report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ostate.core.atomic import check_target, refuse_inputs, write_text
from ostate.core.files import recorded

from . import PATH
from .options import naming, options_of
from .screen import loudness, reading, write

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ostate.commands.options import NamingFields


@click.command()
@click.argument("path", type=PATH, nargs=-1, required=True, metavar="FILE...")
@naming
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("-o", "--out", type=click.Path(), metavar="OUT", help="The page to write. Default: report.html.")
def command(path: tuple[str, ...], force: bool, out: str | None, no_evidence: bool, **chosen: Unpack[NamingFields]) -> None:
    """Write one HTML page of plots from named files or checkpoints. It needs no network and runs no script.

    \b
    Several FILEs of one run: also the change over training. --adapter adds the evidence matrices.
    A checkpoint without names is named first, as `ostate repair` would; only the page is written.

    \b
    Example:
        ostate report lora.ostate.safetensors -o report.html
        ostate report lora.ostate.safetensors --adapter checkpoint-500 -o report.html
        ostate report step-100.ostate.safetensors step-500.ostate.safetensors -o run.html
    """
    from ostate import plot

    if out is None:
        out = "report.html"
    if not out.endswith((".html", ".htm")):
        raise click.UsageError(f"'{out}': report writes an HTML page, so choose a name like report.html")
    check_target(out, force=force, inputs=path)
    with recorded() as inputs, reading("reading"):
        page = plot.page(path, options=options_of(no_evidence, chosen))
    refuse_inputs([Path(out)], inputs)
    write_text(Path(out), page, force=force)
    if loudness() >= 0:
        write(f"wrote {click.format_filename(out)}: {len(path)} {'state' if len(path) == 1 else 'states'}")
