"""What a type checker must know of the public names; read by mypy alone, never run."""

from collections.abc import Mapping
from typing import assert_type

import ostate
from ostate.commands.diff import Difference
from ostate.commands.inspect import Inspection
from ostate.commands.repair import Repaired
from ostate.core.naming import NamedParameter, NamedState, Ordering
from ostate.core.state import Finding

assert_type(ostate.load("a"), NamedState)
assert_type(ostate.load("a").parameters, Mapping[str, NamedParameter])
assert_type(ostate.repair("a", "b", adapter="c"), Repaired)
assert_type(ostate.verify("a"), Ordering)
assert_type(ostate.inspect("a"), Inspection)
assert_type(ostate.diff("a", "b"), Difference)
assert_type(ostate.Finding("rule", "note", "text"), Finding)


def refused(error: ostate.OstateError) -> str:
    return error.what


def held(state: ostate.NamedState) -> int:
    return len(state.parameters)


ostate.lod("a")  # type: ignore[attr-defined]
ostate.load(5)  # type: ignore[arg-type]
