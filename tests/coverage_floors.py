"""Whether each package's branch coverage keeps its floor: `coverage run -m pytest; coverage json; python -m tests.coverage_floors coverage.json`.

A floor is raised when a package rises above it for good, and never lowered to let a change pass. Processes that tests start are not counted.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

FLOORS: dict[str, int] = {
    "__init__": 90,
    "checks": 96,
    "cli": 76,
    "commands": 66,
    "core": 86,
    "errors": 90,
    "evidence": 86,
    "exporters": 85,
    "integrations": 90,
    "optimizers": 94,
    "ordering": 76,
    "plot": 95,
    "probe": 89,
    "read": 85,
    "report": 94,
    "store": 92,
}
"""Percent. What a part of the tests reached, its own among them; the whole suite lies above, and where a package loses its tests it falls below."""
UNMEASURED = {"__main__"}
"""What other processes run."""


def by_package(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return package (or loose module) -> percent of its lines and branches that ran, of what `coverage json` wrote."""
    ran: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for file, row in measured["files"].items():
        parts = PurePath(file).parts
        package = parts[parts.index("ostate") + 1].removesuffix(".py")
        counted = row["summary"]
        ran[package] += counted["covered_lines"] + counted["covered_branches"]
        whole[package] += counted["num_statements"] + counted["num_branches"]
    return {package: 100 * ran[package] / whole[package] for package in sorted(whole) if whole[package]}


def below(found: Mapping[str, float], floors: Mapping[str, int] = FLOORS) -> list[str]:
    """Return a line for each package that is below its floor, or has none."""
    lines = [f"{package} has no floor: give it one near {value:.0f}" for package, value in found.items() if package not in {*floors, *UNMEASURED}]
    lines += [
        f"{package}: {found.get(package, 0):.1f} % is below its floor of {floor} %"
        for package, floor in floors.items()
        if found.get(package, 0) < floor
    ]
    return lines


def main() -> int:
    """Print what each package has, then what is wrong; return 1 where something is."""
    with open(sys.argv[1], encoding="utf-8") as file:
        found = by_package(json.load(file))
    for package, value in found.items():
        print(f"{package:14} {value:5.1f} %  (floor {FLOORS.get(package, 0)} %)")
    wrong = below(found)
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
