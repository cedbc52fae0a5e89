"""The command line: parse, call one function, print. One file a command; only the chosen one is imported."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Sequence
from errno import ENOSPC
from importlib import import_module
from typing import TYPE_CHECKING

import click

from ostate import __version__
from ostate.core.hf_cache import is_repository, local_model, snapshot
from ostate.errors import OstateError, OutOfMemory

from .failures import INTERRUPTED, TERMINATED, Terminated, end_at_sigterm, say, settle_memory_and_threads
from .screen import expect_json, is_json, keep_json, loudness, loudness_options, say_error, say_usage, unwritable, write

gc.set_threshold(500_000)  # nothing dies while modules load and an index is read; looking for it would take a twentieth of `repair`

COMMANDS: dict[str, str] = {
    # name -> one line for `ostate --help`; the command lies in ostate/cli/<name>.py as `command`
    "inspect": "Show what an optimizer state holds, in any layout. Read-only.",
    "names": "Print position, name and shape, a line each.",
    "repair": "Write a state with its parameters' names, proven from the tensor values.",
    "verify": "Check that a state belongs to an adapter, under its names.",
    "validate": "Check that a named file is sound.",
    "diff": "Compare two states, or a state and what a resume will train.",
    "export": "Write a named file in the layout of another program.",
    "probe": "Run a small probe: can the state's preconditioner be trusted?",
    "report": "Write one HTML page of plots.",
    "demo": "Train a tiny LoRA here, misuse its state, repair it, probe with it.",
    "completion": "Print a shell's completion script.",
}


class _Lazy(click.Group):
    """Imports a command's file when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"ostate.cli.{cmd_name}").command
        if not any(param.name == "quiet" for param in command.params):
            command.params += loudness_options()
        for param in command.params:
            if param.name == "as_json":
                param.callback = keep_json
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        expect_json("--json" in args)  # until the command's own options are read, which a slip may prevent
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            if args[0] == "help":
                ctx.fail(f"For help: ostate {args[1] if args[1:] and args[1] in COMMANDS else 'COMMAND'} --help")
            close = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" The commands: {', '.join(COMMANDS)}."
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            say_usage(error)
            raise
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own way out
        except KeyboardInterrupt as stopped:
            ended, code = ("Terminated", TERMINATED) if isinstance(stopped, Terminated) else ("Interrupted", INTERRUPTED)
            click.echo(f"\n{ended}. What was not finished was not written.", err=True)
            ctx.exit(code)
        except OSError as error:  # files that cannot be written are a StoreError by now: this is click printing a command's --help
            ctx.exit(say(unwritable(error) if error.errno == ENOSPC else error))
        except Exception as error:  # noqa: BLE001  (here a program ends: what comes this far is said in words, and never ends as "a person should look")
            ctx.exit(say(error))


_SETTINGS = {"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "OSTATE", "max_content_width": 110}


@click.group(cls=_Lazy, params=[*loudness_options()], context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="ostate")
def main() -> None:
    """Give a saved optimizer state its parameter names back.

    \b
    Exit codes: 0 fine; 1 completed with warnings; 2 usage; 3 refused, with the reason; 70 a fault of ostate's own.

    \b
    Example:
        ostate inspect checkpoint-500 --adapter checkpoint-500
        ostate repair checkpoint-500 -o lora.ostate.safetensors

    Every option can also be set by an environment variable: OSTATE_REPAIR_BASE=base-model.
    """


def run() -> None:
    """Run `main` as a program of its own, and leave at once: what the `ostate` script and `python -m ostate` call.

    Python would take every object apart first, one by one, which is a tenth of `inspect` and of use to nobody. What asked to be called at the
    end is called; output that cannot be written any more is left to Python's own way out, which says so.
    """
    try:
        settle_memory_and_threads()
        end_at_sigterm()
        main()
    except OutOfMemory as error:
        sys.exit(say(error))
    except OSError as error:  # click prints --help and --version before a command is invoked
        sys.exit(say(unwritable(error)))
    except SystemExit as leaving:
        if type(leaving.code) is not int:
            raise
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        except OSError:
            raise leaving from None
        atexit._run_exitfuncs()
        os._exit(leaving.code)


if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    _Text = click.ParamType[str]
else:  # not generic in older releases of click
    _Text = click.ParamType


class _Path(_Text):
    """A file or folder that exists, or a path with a scheme (`s3://`), which is looked at later."""

    name = "path"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if "://" not in text and not os.path.exists(text):
            self.fail(f"'{text}' does not exist.", param, ctx)
        return text

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


PATH = _Path()


class _Model(_Path):
    """A folder or file that exists, or `org/name` of a model that the local Hugging Face cache holds; nothing is downloaded."""

    name = "model"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        folder = local_model(text)
        if not os.path.exists(folder) and is_repository(text):
            self.fail(f"'{text}' is neither a path nor a model in the local Hugging Face cache (looked at {snapshot(text)}).", param, ctx)
        return super().convert(folder, param, ctx)


MODEL = _Model()


def each(paths: Sequence[str], one: Callable[[str], int]) -> None:
    """Call `one`, which returns an exit code, for every path, and leave with the highest; a path that is refused does not stop the others."""
    codes = []
    for i, path in enumerate(paths):
        if i and not is_json() and loudness() >= 0:
            write("")
        try:
            codes.append(one(path))
        except OstateError as error:
            if len(paths) == 1:
                raise
            say_error(error)
            codes.append(3)
    if any(codes):
        sys.exit(max(codes))


def finish(findings_severe: bool) -> None:
    """Leave with exit code 1 when a person should look, else 0."""
    if findings_severe:
        sys.exit(1)
