"""A progress bar with rate and time left, on stderr; gone without a trace when the work is done."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from ostate.report.text import printable


class _Rate(ProgressColumn):
    """Things a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s")


def _columns(unit: str) -> tuple[ProgressColumn, ...]:
    """Return what stands behind the bar: how much, how fast, how long still; or how long already, where nothing is counted."""
    if not unit:
        return (TimeElapsedColumn(),)
    counted = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(), TextColumn(unit), _Rate())
    return TaskProgressColumn(), *counted, TimeRemainingColumn()


def bar(title: str, total: int | None, *, unit: str) -> Progress:
    """Return a running bar with one task, whose id is 0; without a total it only moves. `update` and `stop` are the caller's."""
    running = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), *_columns(unit), console=Console(stderr=True, emoji=False), transient=True
    )
    running.start()
    running.add_task(printable(title), total=total)
    return running
