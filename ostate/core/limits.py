"""Every bound on what a file may ask for, in one table: real files stay far below, a hostile one is refused in words before it costs anything.

`docs/threats.md` shows the table; a test holds the two together.
"""

from __future__ import annotations

from typing import NamedTuple


class Limit(NamedTuple):
    """A bound: its value, what it counts, and what real files have."""

    value: int
    what: str
    real: str


CONTAINERS = 500_000
DEPTH = 64
JSON_BYTES = 1 << 25
LIST_ITEMS = 100_000
TARGETS = 4096

TABLE: tuple[Limit, ...] = (
    Limit(CONTAINERS, "lists and objects in one JSON file", "20,000 in the log of a long run"),
    Limit(DEPTH, "levels of lists and objects in a configuration", "6"),
    Limit(JSON_BYTES, "bytes of a configuration, or of an index of shards", "10,000,000"),
    Limit(LIST_ITEMS, "items of a list or table in an adapter's configuration", "40,000: every expert by name"),
    Limit(TARGETS, "entries of `target_parameters` or `modules_to_save`", "10"),
)
