"""`ostate completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .screen import write


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that makes SHELL complete commands, options and paths.

    \b
    Example:
        ostate completion bash >> ~/.bashrc
        ostate completion zsh >> ~/.zshrc
        ostate completion fish > ~/.config/fish/completions/ostate.fish
    """
    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"click knows no completion for {shell}")
    write(made(ctx.find_root().command, {}, "ostate", "_OSTATE_COMPLETE").source())
