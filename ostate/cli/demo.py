"""`ostate demo`."""

from __future__ import annotations

import click


@click.command()
@click.option("--folder", default="ostate-demo", show_default=True, type=click.Path(file_okay=False), help="Where the files go.")
def command(folder: str) -> None:
    """Train a tiny LoRA here, break its optimizer state as people do, repair it, probe with it.

    About a minute on two cores; no network; nothing outside the folder is touched.

    \b
    Example:
        ostate demo --folder ostate-demo
    """
    from ostate import demo

    demo.run(folder, click.echo)
