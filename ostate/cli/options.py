"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from . import MODEL, PATH

if TYPE_CHECKING:
    from ostate.commands.options import NamingFields, Options

_F = TypeVar("_F", bound=Callable[..., object])

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
    click.option("--adapter", type=PATH, metavar="DIR|FILE", help="The trained weights. Default: searched for beside the state and inside it."),
    click.option("--base", type=MODEL, metavar="DIR|CONFIG|ORG/NAME", help="The base model: folder, config.json, or org/name in the local HF cache."),
    click.option("--model", type=MODEL, metavar="DIR|ORG/NAME", help="Full weights, where there is no adapter (full fine-tuning)."),
    click.option("--order", type=PATH, metavar="FILE", help="File of parameter names, one per line, in the optimizer's order."),
    click.option("--previous", type=PATH, metavar="DIR|FILE", help="An earlier adapter of the same run: the change since is used as evidence."),
    click.option("--adapter-name", metavar="N", help="The adapter's name in the live model, if the files do not record it."),
    click.option(
        "--names",
        type=click.Choice(["live", "file", "peft"]),
        default="live",
        show_default=True,
        help="Form of the names: the live model's, the adapter file's keys, or PeftModel's.",
    ),
    click.option("--state", metavar="FILE", help="The state file, if the folder holds several."),
    click.option("--optimizer", type=Which(), metavar="K|NAME", help="Which optimizer, if there are several: its index from 0, its name, or all."),
    click.option("--no-evidence", is_flag=True, help="Do not use tensor values: the names then stay unverified."),
    click.option("--strict", is_flag=True, help="Refuse instead of writing only the proven names."),
)


def naming(function: _F) -> _F:
    """Add the options that say what the files do not."""
    for option in reversed(_NAMING):
        function = option(function)
    return function


def checksum(function: _F) -> _F:
    """Add `--checksum`, for commands that read a state once."""
    return click.option("--checksum", is_flag=True, help="First check every byte of the state against the checksums stored in it.")(function)


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


def options_of(no_evidence: bool, chosen: NamingFields) -> Options:
    """Return `Options` from click's parameters."""
    from ostate.commands.options import Options

    return Options(**chosen, evidence=not no_evidence)
