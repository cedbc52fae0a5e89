"""Python's search for dead cycles, put off while an index is read: nothing dies there, and looking takes half the time."""

from __future__ import annotations

import gc
from types import TracebackType


class Paused:
    """Context in which no cycle is collected; what was on before is on again after it."""

    def __enter__(self) -> None:
        self.was_on = gc.isenabled()
        gc.disable()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.was_on:
            gc.enable()
