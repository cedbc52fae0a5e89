"""A pickle machine that can build plain data and nothing else.

Python's own unpickler imports what a file names, calls it, and sets attributes on the result; a damaged length or memo number
can ask it for gigabytes. This one reads the same opcodes into dicts, lists, tuples, sets, numbers and text. A global is looked up in a
table and is data of ours; a call goes to that table's function; BUILD fills an inert record. There is no other way out of it, and it asks
for memory in proportion to the bytes that are there.
"""

from __future__ import annotations

from collections.abc import Callable

from .records import Refusal


class Machine:
    """One run over one pickle (`opcodes.run`). `find(module, name)` answers globals, `persistent(id)` persistent ids, `build(object, state)` BUILD.

    Where a memo number brings back `before`, `fast_path(machine, position)` may read the call that follows in one go; it returns -1 where it cannot.
    """

    __slots__ = ("before", "budget", "build", "data", "fast_path", "find", "marks", "memo", "most_memo", "persistent", "stack")

    def __init__(
        self,
        data: bytes,
        find: Callable[[str, str], object],
        persistent: Callable[[object], object],
        build: Callable[[object, object], object],
    ) -> None:
        self.data = data
        self.find = find
        self.persistent = persistent
        self.build = build
        self.before: object = self
        self.fast_path: Callable[[Machine, int], int] = _stay
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.budget = 10_000 + len(data) // 8
        """Containers that may still be made: real pickles spend twelve bytes or more on each."""
        self.most_memo = 10_000 + len(data) // 3
        """Memo numbers that may be given: real pickles spend five bytes or more on each."""

    def pop_mark(self) -> list[object]:
        """Return what was pushed since the last MARK, and take it off."""
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def counted(self) -> None:
        """Make sure that the memo holds all that was put: MEMOIZE gives the next number, and a fast path leaves some out.

        Raises:
            KeyError: something may have been leapt over.
        """
        if self.fast_path is not _stay:
            raise KeyError(len(self.memo))

    def spend(self) -> None:
        """Count one more container."""
        self.budget -= 1
        if self.budget < 0:
            raise Refusal("more containers than a file of this size can hold")


def _stay(_: Machine, __: int) -> int:
    return -1
