"""`ostate repair`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import TYPE_CHECKING

import click

from ostate.core.system import keep_freed_memory
from ostate.report import verdict_text
from ostate.report.text import printable, table

from . import PATH, finish
from .options import Betas, checksum, naming, options_of
from .screen import reading, show, write

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ostate.commands.options import NamingFields, Options


@click.command()
@click.argument("path", type=PATH, required=False)
@naming
@checksum
@click.option("--step", type=click.IntRange(min=1), metavar="N", help="Number of optimizer steps, if the file does not record it.")
@click.option("--betas", type=Betas(), metavar="B1,B2", help="Adam's betas, if the file does not record them.")
@click.option("--eps", type=click.FloatRange(min=0), metavar="E", help="Adam's eps, if the file does not record it.")
@click.option("--keep-dtype", is_flag=True, help="Keep bfloat16 and float16 moments as they are. Default: float32.")
@click.option("--sha256", is_flag=True, help="Also record a SHA-256 of every tensor.")
@click.option("--dry-run", is_flag=True, help="Determine the names, write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (schemas/repair-v1.schema.json).")
@click.option("--batch", metavar="PATTERN", help="Repair every checkpoint that matches into the folder OUT; skip those already done.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Checkpoints at a time, with --batch.")
@click.option("-o", "--out", type=click.Path(), metavar="OUT", help="The named file to write, for example lora.ostate.safetensors.")
def command(
    path: str | None,
    batch: str | None,
    jobs: int,
    dry_run: bool,
    force: bool,
    as_json: bool,
    out: str | None,
    keep_dtype: bool,
    sha256: bool,
    no_evidence: bool,
    **chosen: Unpack[NamingFields],
) -> None:
    """Write the optimizer state at PATH with its parameters' names, proven from the tensor values.

    \b
    verified, recovered   proven; exit 0
    partial, unverified   written with a warning; exit 1
    refused               not certain enough, nothing is written; exit 3

    An input is never modified.

    \b
    Example:
        ostate repair checkpoint-500 -o lora.ostate.safetensors
        ostate repair optimizer.pt --adapter lora/ --base base-model/ -o lora.ostate.safetensors
        ostate repair --batch 'runs/*/checkpoint-*' --jobs 4 -o named/
    """
    keep_freed_memory()
    if batch is not None:
        if path is not None or out is None or dry_run or as_json:
            raise click.UsageError("--batch takes a pattern instead of PATH, and a folder: -o OUT")
        _batch(batch, out, options_of(no_evidence, chosen), jobs=jobs, force=force, keep_dtype=keep_dtype, sha256=sha256)
        return
    if path is None:
        raise click.UsageError("no state given: pass PATH (or --batch PATTERN)")
    from ostate.commands import documents, repair

    if out is None and not dry_run:
        raise click.UsageError("no output given: pass -o OUT (or --dry-run to write nothing)")
    options = options_of(no_evidence, chosen)
    with reading("proving" if dry_run else "proving and writing"):
        done = repair.repair(path, None if dry_run else out, options=options, force=force, keep_dtype=keep_dtype, sha256=sha256)
    show(documents.repair_document(path, done), verdict_text.blocks, as_json=as_json)
    finish(not done.settled)


def _batch(pattern: str, folder: str, options: Options, *, jobs: int, **how: bool) -> None:
    """Repair all that match, a line each as it ends, a summary at the end."""
    from ostate.commands.batch import Outcome, repair_all, targets

    work = targets(pattern, folder)
    os.makedirs(folder, exist_ok=True)

    def say(one: Outcome) -> None:
        tail = "already done" if one.done else one.reason or f"{one.parameters} parameters, {one.seconds:.1f} s"
        write(printable(f"{one.verdict:<10}  {one.path}  {tail}"))

    outcomes = repair_all(work, options=options, jobs=jobs, say=say, **how)
    counted = Counter((one.verdict, one.done) for one in outcomes)
    rows = [(verdict, count, "already done" if done else "now") for (verdict, done), count in sorted(counted.items())]
    write("\n".join(["", *table(rows, ("verdict", "checkpoints", "written"))]))
    if any(one.verdict == "refused" for one in outcomes):
        sys.exit(3)
    finish(not all(one.settled for one in outcomes))
