"""Where the fitted search begins."""

from __future__ import annotations

from types import SimpleNamespace

from ostate.evidence.search import from_keys


def test_a_claim_begins_at_what_the_tables_know_of_it():
    """Positions with state and keys of their shape; a key of another shape, and one of no tensor, is left out."""
    tables = SimpleNamespace(shape_of_key={"a": (2, 4), "b": (4, 2), "c": (2, 4)}, positions_of_shape={(2, 4): [0, 3], (4, 2): [1]})
    assert from_keys(["a", "b", None, "c"], tables) == {"a": 0, "b": 1, "c": 3}
    assert from_keys(["b", "x", "a", None], tables) == {}
