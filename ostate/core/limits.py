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


ADAPTER_BYTES = 1 << 38
CONTAINERS = 500_000
DEPTH = 64
GROUPS = 100_000
JSON_BYTES = 1 << 25
LIST_ITEMS = 100_000
NAME = 5000
POSITIONS = 500_000
REPEATED = 1 << 26
SPARSE = 16
TARGETS = 4096
TENSORS = 250_000
VALUES = 2_000_000

TABLE: tuple[Limit, ...] = (
    Limit(GROUPS, "groups of a state", "40,000: one for each parameter"),
    Limit(POSITIONS, "positions of a state, with or without moments", "92,000: every expert of DeepSeek-V3"),
    Limit(NAME, "letters of one name", "200"),
    Limit(TENSORS, "tensors of one adapter or safetensors file", "110,000"),
    Limit(VALUES, "plain values of a state's groups and entries, each counted wherever it stands", "800,000: twenty for each of 40,000 groups"),
    Limit(REPEATED, "bytes of numbers that a state may ask for beyond twice those it holds: strides of zero, shared storages", "0"),
    Limit(ADAPTER_BYTES, "bytes of one file of weights", "50,000,000,000"),
    Limit(SPARSE, "times as long as what was ever written of it a file of weights above 1 GB may be (a sparse file)", "1"),
    Limit(CONTAINERS, "lists and objects in one JSON file", "20,000 in the log of a long run"),
    Limit(DEPTH, "levels of lists and objects in a configuration", "6"),
    Limit(JSON_BYTES, "bytes of a configuration, or of an index of shards", "10,000,000"),
    Limit(LIST_ITEMS, "items of a list or table in an adapter's configuration", "40,000: every expert by name"),
    Limit(TARGETS, "entries of `target_parameters` or `modules_to_save`", "10"),
)


def table() -> str:
    """Return the table as docs/threats.md shows it."""
    rows = [f"| {limit.value:,} | {limit.what} | {limit.real} |" for limit in TABLE]
    return "\n".join(["| at most | | real files have |", "|---|---|---|", *rows])
