"""`ostate export`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ostate.report import export_text

from . import MODEL, PATH, finish
from .screen import progress, show

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ostate.commands.export import ExportFields, Layout

LAYOUTS = ("torch", "less", "bergson", "dattri", "ota", "names", "dcp", "dcp-flat", "dcp-positions", "deepspeed-universal", "accelerate", "ostate")
"""The rows of `exporters.EXPORTERS`, and the named format itself; held equal by a test."""


def _renamings(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return pattern and replacement of each `FROM=TO`, or fail with what was expected."""
    pairs = []
    for text in value:
        pattern, equals, replacement = text.partition("=")
        if not equals or not pattern:
            raise click.BadParameter(f"{text!r} is not FROM=TO, such as 'layers=blocks'", ctx, param)
        pairs.append((pattern, replacement))
    return tuple(pairs)


@click.command()
@click.argument("file", type=PATH)
@click.option("--to", required=True, type=click.Choice(LAYOUTS), help="The layout to write. ostate: a named file, for another set of parameters.")
@click.option(
    "--for", "wanted", type=PATH, metavar="NAMES|DIR", help="The parameters of the optimizer that will load it: a file of names, or an adapter."
)
@click.option(
    "--groups",
    type=click.Choice(["auto", "file", "one", "trainer"]),
    default="auto",
    help="Parameter groups: as in FILE, one, or Trainer's two. auto: Trainer's if FILE has them, else FILE's.",
)
@click.option("--base", type=MODEL, metavar="DIR|CONFIG|ORG/NAME", help="The base model, for the order of an adapter's new parameters.")
@click.option(
    "--new", type=click.Choice(["zeros", "cold-step", "sibling", "absent"]), default="zeros", help="The state of a parameter that FILE lacks."
)
@click.option("--rename", multiple=True, callback=_renamings, metavar="FROM=TO", help="Rename parameters by regular expression; repeatable.")
@click.option("--truncate", is_flag=True, help="Keep the part that fits of a parameter that shrank.")
@click.option("--adapter", type=PATH, metavar="DIR|FILE", help="The trained weights, for layouts that store them.")
@click.option("--v-hat", is_flag=True, help="bergson, ota: write v bias-corrected.")
@click.option("--root", default="optim", show_default=True, help="dcp: the optimizer's key (Trainer and accelerate: optimizer).")
@click.option("--rest", type=PATH, metavar="DIR", help="dcp: also write what else this distributed checkpoint holds, such as a scheduler.")
@click.option(
    "--as",
    "taken_as",
    type=click.Choice(["own", "adamw_torch"]),
    default="own",
    show_default=True,
    help="torch, accelerate, dcp: for the optimizer that made FILE (own), or for torch's AdamW.",
)
@click.option("--names", is_flag=True, help="torch, accelerate: also write optimizer_param_names.json beside it.")
@click.option("--strict", is_flag=True, help="Refuse if anything would be lost.")
@click.option("--dry-run", is_flag=True, help="Print what would be kept, added, dropped and lost; write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (schemas/export-v1.schema.json).")
@click.option("-o", "--out", type=click.Path(), metavar="OUT", help="The file or folder to write.")
def command(file: str, to: Layout, out: str | None, dry_run: bool, as_json: bool, **chosen: Unpack[ExportFields]) -> None:
    """Write the named state FILE in another program's layout, or for another set of trainable parameters.

    \b
    Exit codes: 0 written completely; 1 written, with losses or unproven names; 3 refused.

    \b
    Example:
        ostate export lora.ostate.safetensors --to torch -o optimizer.pt
        ostate export lora.ostate.safetensors --to torch --for new-adapter/ --base base-model/ --groups trainer -o checkpoint-500/optimizer.pt
        ostate export lora.ostate.safetensors --to less -o optimizer.bin
    """
    from ostate.commands import export as program

    if out is None and not dry_run:
        raise click.UsageError("no output given: pass -o OUT (or --dry-run to write nothing)")
    with progress("writing", unit=""):
        done = program.export(file, to, None if dry_run else out, **chosen)
    show(program.as_document(done), export_text.blocks, as_json=as_json)
    finish(any(finding.severity != "note" for finding in done.findings))
