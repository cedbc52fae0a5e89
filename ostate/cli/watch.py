"""The count behind a progress bar: a timer's thread draws the bar once the work has taken a second."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


class Watch:
    """Keeps (done, total), and shows it from `draw` on until `stop`. `draw` may come from another thread."""

    def __init__(self, title: str, unit: str) -> None:
        self._title, self._unit = title, unit
        self._done = self._total = 0
        self._lock = Lock()
        self._bar: Progress | None = None
        self._over = False

    def step(self, done: int, total: int) -> None:
        """Take in how far the work is; a total of 0 is one that is not known."""
        self._done, self._total = done, total
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total or None)

    def draw(self) -> None:
        """Show the bar, unless the work is over."""
        from ostate.report.bar import bar

        with self._lock:
            if not self._over:
                self._bar = bar(self._title, self._total or None, unit=self._unit)
                self._bar.update(self._bar.task_ids[0], completed=self._done)

    def stop(self) -> None:
        """Take the bar away."""
        with self._lock:
            self._over = True
            if self._bar is not None:
                self._bar.stop()
