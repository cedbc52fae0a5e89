"""How the package is built, measured: `python -m tests.architecture` writes the tables of docs/architecture.md anew.

`python -m tests.architecture FOLDER` prints the totals of another checkout, such as an older commit's.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
FLOORS: tuple[tuple[str, ...], ...] = (
    ("__init__", "errors"),
    ("core",),
    ("optimizers",),
    ("checks", "evidence", "ordering", "probe", "read", "report", "store"),
    ("exporters",),
    ("commands",),
    ("integrations", "plot"),
    ("cli",),
    ("__main__",),
)
"""Packages and loose modules from the ground up. Each imports from floors below its own, never from its neighbours: what joins them stands above."""
BEFORE: dict[str, int] = {
    "files": 193,
    "lines": 25108,
    "folders": 9,
    "packages and loose modules that may be imported": 32,
    "loose modules beside the face and its errors": 22,
    "arrows between packages": 140,
    "circles of imports": 6,
    "imports within functions": 187,
    "modules with `__getattr__`": 7,
}
"""The totals before the modules were moved into packages, counted by this script."""


class Source(NamedTuple):
    """One module."""

    name: str
    """Dotted, with `ostate.`."""
    file: Path
    tree: ast.Module
    lines: int

    @property
    def place(self) -> str:
        """The package, or the loose module, that it is or lies in."""
        return [*self.name.split("."), "__init__"][1]


def sources(root: Path = ROOT) -> dict[str, Source]:
    """Return every module of the package by its dotted name."""
    found = {}
    for file in sorted((root / "ostate").rglob("*.py")):
        name = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        text = file.read_text(encoding="utf-8")
        found[name] = Source(name, file, ast.parse(text), text.count("\n"))
    return found


def names_imported(source: Source, node: ast.AST) -> set[str]:
    """Return the absolute dotted names that one import statement brings; nothing for any other node."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not isinstance(node, ast.ImportFrom):
        return set()
    package = source.name.split(".") if source.file.name == "__init__.py" else source.name.split(".")[:-1]
    base = [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])] if node.level else [str(node.module)]
    return {".".join([*base, alias.name]) for alias in node.names}


def imports_of(source: Source, *, tops: bool = False) -> set[str]:
    """Return the absolute dotted names that a module imports, at any depth, or with `tops` as it is imported itself.

    What the face shows to a type checker alone is no import; with `tops` nothing that stands under TYPE_CHECKING is.
    """
    if source.name == "ostate":
        return set()
    nodes = _at_the_top(source.tree) if tops else ast.walk(source.tree)
    return {name for node in nodes for name in names_imported(source, node)}


def _at_the_top(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when a module is imported."""
    for child in ast.iter_child_nodes(node):
        unseen = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or (
            isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        )
        if not unseen:
            yield child
            yield from _at_the_top(child)


def arrows(modules: dict[str, Source], *, tops: bool = False) -> dict[str, set[str]]:
    """Return module -> modules of the package that it imports, at any depth, or with `tops` as it is imported itself."""
    out = {}
    for source in modules.values():
        targets = set()
        for name in imports_of(source, tops=tops):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            targets.add(name)
        out[source.name] = targets - {"", source.name}
    return out


def places(modules: dict[str, Source]) -> dict[str, set[str]]:
    """Return package or loose module -> those that it imports, without itself and without the version in the face."""
    out: dict[str, set[str]] = {source.place: set() for source in modules.values()}
    for name, targets in arrows(modules).items():
        out[modules[name].place] |= {modules[target].place for target in targets} - {modules[name].place, "__init__"}
    return out


def circles(links: dict[str, set[str]]) -> list[set[str]]:
    """Return the sets of modules that all reach one another."""
    reached: dict[str, set[str]] = {}
    for start in links:
        seen: set[str] = set()
        todo = list(links[start])
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += links[module]
        reached[start] = seen
    return [set(group) for group in {frozenset(other for other in reached[one] if one in reached[other]) for one in links} if group]


def imports_in_functions(modules: dict[str, Source]) -> list[tuple[str, int, list[str]]]:
    """Return module, line and absolute dotted names of each import that stands within a function."""
    found = []
    for source in modules.values():
        statements: dict[int, ast.stmt] = {}
        for function in ast.walk(source.tree):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                statements |= {node.lineno: node for node in ast.walk(function) if isinstance(node, (ast.Import, ast.ImportFrom))}
        found += [(source.name, line, sorted(names_imported(source, node))) for line, node in sorted(statements.items())]
    return found


def measured_imports(page: str) -> Counter[str]:
    """Return module -> how many of its imports within functions the page says were measured (`tests/import_costs.py`)."""
    table = re.search(r"<!-- within functions -->\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert table, "the page has lost its markers"
    found: Counter[str] = Counter()
    for row in table[1].splitlines()[2:]:
        for name, count in re.findall(r"([\w.]+)(?: \((\d+)\))?", row.split(" | ")[-1]):
            found["ostate." + name if name != "ostate" else name] += int(count or 1)
    return found


def names_on_demand(modules: dict[str, Source]) -> set[str]:
    """Return the modules that give names by a `__getattr__` of their own."""
    functions = {source.name: [node for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef)] for source in modules.values()}
    return {name for name, found in functions.items() if any(node.name == "__getattr__" and len(node.args.args) == 1 for node in found)}


def totals(modules: dict[str, Source]) -> dict[str, int]:
    """Return the figures of the first table."""
    links = places(modules)
    packages = {source.file.parent for source in modules.values()} - {modules["ostate"].file.parent}
    return {
        "files": len(modules),
        "lines": sum(source.lines for source in modules.values()),
        "folders": len(packages),
        "packages and loose modules that may be imported": len([place for place in links if place not in ("__init__", "__main__")]),
        "loose modules beside the face and its errors": len(
            [name for name in modules if name.count(".") == 1 and modules[name].file.name != "__init__.py"]
        )
        - 2,
        "arrows between packages": sum(len(targets) for targets in links.values()),
        "circles of imports": len(circles(arrows(modules))),
        "imports within functions": len(imports_in_functions(modules)),
        "modules with `__getattr__`": len(names_on_demand(modules)),
    }


def tables(modules: dict[str, Source]) -> dict[str, str]:
    """Return the page's tables, by the word in their markers."""
    now, links = totals(modules), places(modules)
    lines = Counter({place: sum(source.lines for source in modules.values() if source.place == place) for place in links})
    files = Counter(source.place for source in modules.values())
    whole = ["| | before | now |", "|---|---|---|", *(f"| {what} | {BEFORE.get(what, '')} | {count} |" for what, count in now.items())]
    floors = ["| floor | package | files | lines | imports from |", "|---|---|---|---|---|"]
    for height, row in reversed(list(enumerate(FLOORS))):
        for place in row:
            floors.append(f"| {height} | `{place}` | {files[place]} | {lines[place]} | {', '.join(sorted(links[place])) or 'nothing'} |")
    return {"totals": "\n".join(whole), "floors": "\n".join(floors)}


def with_table(page: str, word: str, table: str) -> str:
    """Return the page with the table between the markers of `word` replaced."""
    return re.sub(rf"(<!-- {word} -->\n).*?(\n<!-- end -->)", lambda match: match[1] + table + match[2], page, flags=re.DOTALL)


def renewed(page: str, modules: dict[str, Source]) -> str:
    """Return the page with its tables written anew."""
    for word, table in tables(modules).items():
        page = with_table(page, word, table)
    return page


def main() -> None:
    """Write the tables, or print another checkout's totals."""
    if len(sys.argv) > 1:
        for what, count in totals(sources(Path(sys.argv[1]))).items():
            print(f"{what}: {count}")
        return
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), sources()), encoding="utf-8")


if __name__ == "__main__":
    main()
