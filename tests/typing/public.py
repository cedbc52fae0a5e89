"""What a type checker must know of the public names; read by type checkers, never run."""

from collections.abc import Mapping
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

import ostate
from ostate.commands.diff import Difference
from ostate.commands.export import Exported
from ostate.commands.inspect import Inspection
from ostate.commands.repair import Repaired
from ostate.core.naming import NamedParameter, NamedState, Ordering
from ostate.core.state import Finding
from ostate.store.writing import Written

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


def numbers(state: ostate.NamedState) -> None:
    assert_type(state.tensor("a", "exp_avg_sq"), NDArray[np.floating])
    assert_type(list(state), list[str])
    assert_type(state["a"], NamedParameter)


assert_type(ostate.write(ostate.load("a"), "b"), Written)
assert_type(ostate.export("a", "torch", "b"), Exported)
assert_type(ostate.names("a"), tuple[list[tuple[int, str, str]], bool])
ostate.lod("a")  # type: ignore[attr-defined]
ostate.load(5)  # type: ignore[arg-type]
ostate.repair("a", adaptor="c")  # type: ignore[call-arg]
ostate.export("a", "trch", "b")  # type: ignore[arg-type]
