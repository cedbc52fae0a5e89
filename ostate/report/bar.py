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


def bar(title: str, total: int, *, unit: str) -> Progress:
    """Return a running bar with one task, whose id is 0; `update` and `stop` are the caller's."""
    counted = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(), TextColumn(unit), _Rate())
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), *counted, TimeRemainingColumn())
    running = Progress(*columns, console=Console(stderr=True, emoji=False), transient=True)
    running.start()
    running.add_task(printable(title), total=total)
    return running
