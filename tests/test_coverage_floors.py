"""A package that loses its tests is seen, and so is one that nobody gave a floor."""

from __future__ import annotations

from tests.architecture import places, sources
from tests.coverage_floors import FLOORS, UNMEASURED, below, by_package


def row(covered, statements, branches_covered, branches):
    return {"summary": {"covered_lines": covered, "num_statements": statements, "covered_branches": branches_covered, "num_branches": branches}}


def test_lines_and_branches_of_a_packages_files_are_added_up():
    found = by_package({"files": {"ostate/core/a.py": row(8, 10, 0, 2), "ostate/core/in/b.py": row(4, 4, 4, 4), "ostate/errors.py": row(0, 5, 0, 0)}})
    assert found == {"core": 80.0, "errors": 0.0}


def test_a_package_below_its_floor_is_named_and_one_without_a_floor_too():
    floors = {"core": 81, "store": 50}
    assert below({"core": 80.0, "store": 50.0, "new": 99.0}, floors) == [
        "new has no floor: give it one near 99",
        "core: 80.0 % is below its floor of 81 %",
    ]


def test_every_package_has_a_floor():
    assert {*FLOORS, *UNMEASURED} == set(places(sources()))
