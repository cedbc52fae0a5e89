"""`ostate demo`."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout

import click

from . import main
from .screen import write


@click.command()
@click.option("-o", "--folder", default="ostate-demo", show_default=True, type=click.Path(file_okay=False), help="Folder to write to.")
def command(folder: str) -> None:
    """Train a tiny LoRA here, misuse its optimizer state as people do, repair it, probe with it.

    Takes half a minute on two cores, uses no network, writes only in the folder.

    \b
    Example:
        ostate demo --folder ostate-demo
    """
    from ostate.commands import demo

    demo.run(folder, write, _run)


def _run(arguments: list[str]) -> tuple[int, str]:
    """Run a command as a pipe would see it; return its exit code and what it printed."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            code = main(arguments, "ostate", standalone_mode=False)
        except SystemExit as left:
            code = left.code
    return int(code or 0), printed.getvalue()
