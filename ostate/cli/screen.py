"""How a command prints: data to stdout, messages to stderr; colour and rules for a terminal, plain text for a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from errno import EPIPE
from textwrap import wrap
from threading import Timer
from typing import TYPE_CHECKING, TextIO

import click

from ostate.core.quiet import SHOW_ALL
from ostate.errors import MOST_REASONS, OstateError
from ostate.report.text import plain, printable

from .watch import Watch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Protocol, TypeVar

    from ostate.report.blocks import Block

    _Document = TypeVar("_Document", bound=Mapping[str, object], contravariant=True)

    class Blocks(Protocol[_Document]):
        """A function of the package `report` that turns a document into blocks."""

        def __call__(self, document: _Document, *, full: bool = False) -> list[Block]:
            """Return what the document says."""


Step = Callable[[int, int], None]
"""(done, total), in the unit that `progress` was given; called as often as the work likes."""

_LOUDNESS = "ostate.loudness"
_JSON = "ostate.json"
_LONGEST = 900
"""Letters of one line of an error."""
_PATIENCE = 1.0
"""Seconds of silence before a progress bar appears."""


def loudness_options() -> list[click.Option]:
    """Return `-q` and `-v`, for the group and for every command."""

    def keep(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if not value:
            return
        loudness = -1 if param.name == "quiet" else 1
        if ctx.meta.get(_LOUDNESS, loudness) != loudness:
            raise click.UsageError("-q and -v exclude each other: pass one of them", ctx)
        ctx.meta[_LOUDNESS] = loudness
        if loudness > 0:
            shown = SHOW_ALL.set(True)
            ctx.find_root().call_on_close(lambda: SHOW_ALL.reset(shown))

    return [
        click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, callback=keep, help="Only warnings and errors."),
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=keep,
            help="All rows, names and reasons; the traceback of an error; what other packages print.",
        ),
    ]


def loudness() -> int:
    """Return -1 under `-q`, 1 under `-v`, else 0."""
    ctx = click.get_current_context(silent=True)
    return int(ctx.meta.get(_LOUDNESS, 0)) if ctx is not None else 0


def keep_json(ctx: click.Context, param: click.Parameter, value: bool) -> bool:  # noqa: ARG001
    """Remember `--json`, so that a refusal is a JSON document too."""
    ctx.meta[_JSON] = value
    return value


def expect_json(wanted: bool) -> None:
    """Remember whether `--json` stands anywhere on the command line: a mistake in it is said as a document too."""
    click.get_current_context().meta[_JSON] = wanted


def is_json() -> bool:
    """Tell whether the command prints JSON."""
    ctx = click.get_current_context(silent=True)
    return ctx is not None and bool(ctx.meta.get(_JSON))


def show(document: _Document, blocks: Blocks[_Document], *, as_json: bool = False) -> None:
    """Print a document: as JSON, or as text in the way the receiver can take it."""
    if as_json:
        from ostate.report.json_text import as_json as text_of

        write(text_of(document))
        return
    said = blocks(document, full=loudness() > 0)
    if loudness() < 0:
        say([block for block in said if getattr(block, "severity", "note") != "note"], err=True)
    else:
        say(said)


def say(blocks: list[Block], *, err: bool = False) -> None:
    """Print blocks to stdout, or to stderr."""
    if not blocks:
        return
    stream = sys.stderr if err else sys.stdout
    most = 0 if loudness() > 0 else 6
    if is_terminal(stream):
        from ostate.report.rich_text import rendered

        write(rendered(blocks, width=_columns(), colour=wants_colour(stream), most=most).rstrip("\n"), err=err)
    else:
        write("\n".join(plain(blocks, most=most)), err=err)


def say_error(error: OstateError, cause: Exception | None = None, *, exit_code: int = 3) -> None:
    """Print what, where, why and fix to stderr, under `-v` also the traceback of `cause`, or its own; under `--json` also a document to stdout."""
    mark = click.style("Error:", fg="red", bold=True) if wants_colour(sys.stderr) else "Error:"
    most = len(error.why) if loudness() > 0 else MOST_REASONS
    rows = [(f"{mark} ", _cut(printable(error.what)))]
    rows += [("  at:  ", _cut(printable(error.where)))] * bool(error.where)
    rows += [("  -    ", _cut(printable(reason))) for reason in error.why[:most]]
    rows += [("  -    ", f"… {len(error.why) - most} more (-v shows all)")] * bool(error.why[most:])
    rows += [("  fix: ", printable(error.fix))] * bool(error.fix)
    lines = [line for title, text in rows for line in _filled(title, text)]
    if loudness() > 0:
        import traceback

        lines += ["", *(printable(line) for whole in traceback.format_exception(cause or error) for line in whole.splitlines())]
    write("\n".join(lines), err=True)
    if is_json():
        from ostate.report.json_text import as_json, error_document

        with suppress(OstateError):  # standard output is what failed, and the words above say so
            write(as_json(error_document(error, exit_code)))


def say_usage(error: click.UsageError) -> None:
    """Under `--json` print a document for a mistake on the command line; click itself says it in words."""
    if is_json():
        from ostate.report.json_text import as_json, error_document

        command = error.ctx.command_path if error.ctx is not None else "ostate"
        refusal = OstateError(error.format_message(), where=command, fix=f"{command} --help")
        write(as_json({**error_document(refusal, click.UsageError.exit_code), "error": "UsageError"}))


def _filled(title: str, text: str) -> list[str]:
    """Return title and text as lines that fit a terminal, each further one under the text; as one line for a pipe. No name is ever broken."""
    if not is_terminal(sys.stderr):
        return [title + text]
    indent = " " * 7
    wide = max(_columns(), 40) - len(indent)
    first, *rest = wrap(text, wide, break_long_words=False, break_on_hyphens=False) or [""]
    return [title + first, *(indent + line for line in rest)]


def _columns() -> int:
    from shutil import get_terminal_size  # bz2, lzma

    return get_terminal_size().columns


def _cut(text: str) -> str:
    """Shorten what a hostile name made longer than a screen."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 4 :]}"


def is_terminal(stream: TextIO | None) -> bool:
    """Tell whether a person looks at the stream; FORCE_COLOR says yes, TERM=dumb no. A stream that was closed (`>&-`) has nobody."""
    if stream is None:
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def wants_colour(stream: TextIO | None) -> bool:
    """Tell whether colour may be used (https://no-color.org: any value that is not empty forbids it)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


@contextmanager
def progress(title: str, *, unit: str = "bytes") -> Iterator[Step | None]:
    """Draw a bar with rate and time left on stderr once the work has taken a second; where nobody would see it, nothing is imported or started.

    Args:
        title: what is being done.
        unit: `bytes`, or what is counted; empty where nothing is.

    Yields:
        What the work calls with (done, total), a total of 0 while it is not known; None where nobody would see it.
    """
    if loudness() < 0 or sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    watch = Watch(title, unit)
    timer = Timer(_PATIENCE, watch.draw)
    timer.daemon = True
    timer.start()
    try:
        yield watch.step
    finally:
        timer.cancel()
        watch.stop()


@contextmanager
def reading(title: str) -> Iterator[None]:
    """`progress` over every byte that is read inside."""
    with progress(title) as step:
        if step is None:
            yield
            return
        from ostate.core.files import watched

        with watched(step):
            yield


def write(text: str, *, err: bool = False) -> None:
    """Print, and end the line; a stream that cannot write a sign gets its escape instead of a crash.

    Raises:
        OstateError: standard output cannot be written: a full disk. A reader that went away (`| head`) is left to click.
    """
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        click.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err, color=wants_colour(stream) or None)
    except OSError as error:
        if err or error.errno == EPIPE:
            raise
        raise unwritable(error) from error


def unwritable(error: OSError) -> OstateError:
    """Return what to tell of standard output that cannot be written."""
    fix = "make room, or print elsewhere; files that were asked for are written whole or not at all"
    return OstateError(f"the output cannot be written: {error.strerror}", where="standard output", fix=fix)
