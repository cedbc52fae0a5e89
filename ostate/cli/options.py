"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import PATH

if TYPE_CHECKING:
    from ostate.commands.repair import Options

_F = TypeVar("_F", bound=Callable[..., Any])

if TYPE_CHECKING:
    _Pair = click.ParamType[tuple[float, float]]
    _Which = click.ParamType[int | str]
else:  # not generic in older releases of click
    _Pair = _Which = click.ParamType


class Which(_Which):
    """A number from 0, or a name."""

    name = "K|NAME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return a whole number as one, anything else as it is."""
        text = str(value)
        return int(text) if re.fullmatch(r"-?\d+", text) else text


_NAMING = (
    click.option("--adapter", type=PATH, metavar="DIR|FILE", help="The trained weights. Default: looked for beside the state and inside it."),
    click.option("--base", type=PATH, metavar="DIR|CONFIG", help="The base model's folder or config.json (weights, if there, are evidence too)."),
    click.option("--model", type=PATH, metavar="DIR", help="Folder of full weights, where there is no adapter (full fine-tuning)."),
    click.option("--order", type=PATH, metavar="FILE", help="Names, one a line, in the optimizer's order."),
    click.option("--previous", type=PATH, metavar="DIR|FILE", help="An earlier adapter of the same run: what moved since is evidence."),
    click.option("--adapter-name", metavar="N", help="The adapter's name in the live model, where the files do not tell."),
    click.option("--state", metavar="FILE", help="Which file of the folder is the state, where several could be."),
    click.option("--optimizer", type=Which(), metavar="K|NAME", help="Which optimizer, where there are several: its number from 0, or its name."),
    click.option("--no-evidence", is_flag=True, help="Leave the numbers out: names are then an assumption."),
    click.option("--strict", is_flag=True, help="Refuse instead of writing only what is proven."),
)


def naming(function: _F) -> _F:
    """Add the options that say what the files do not."""
    for option in reversed(_NAMING):
        function = option(function)
    return function


def checksum(function: _F) -> _F:
    """Add `--checksum`, for commands that read a state once."""
    return click.option("--checksum", is_flag=True, help="First compare every byte of the state with the checksums saved in it.")(function)


class Betas(_Pair):
    """`0.9,0.999`."""

    name = "B1,B2"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Return the two numbers, or fail with what was expected."""
        if isinstance(value, tuple):
            return value
        try:
            first, second = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not two numbers with a comma, such as 0.9,0.999", param, ctx)
        return first, second


def options_of(chosen: dict[str, Any]) -> Options:
    """Return `repair.Options` from click's parameters."""
    from ostate.commands.repair import Options

    evidence = not chosen.pop("no_evidence")
    return Options(evidence=evidence, **chosen)
