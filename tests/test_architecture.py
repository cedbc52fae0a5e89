"""Holds the arrows of the design: who may import whom, and what stays out of the fast path."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ostate"
FLOORS: tuple[set[str], ...] = (
    {"__init__", "errors"},
    {"core"},
    {"optimizers"},
    {"checks", "evidence", "ordering", "probe", "read", "report", "store"},
    {"exporters"},
    {"commands"},
    {"integrations", "plot"},
    {"cli"},
    {"__main__"},
)
"""Rooms from the ground up. A room imports from floors below its own, never from its neighbours: what joins them stands above them."""
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "core": {"errors"},
    "optimizers": {"core", "errors"},
    "checks": {"core", "errors", "optimizers"},
    "evidence": {"core", "optimizers"},
    "ordering": {"core", "errors", "optimizers"},
    "probe": {"core", "errors", "optimizers"},
    "read": {"core", "errors", "optimizers"},
    "report": {"core", "errors", "optimizers"},
    "store": {"core", "errors", "optimizers"},
    "exporters": {"core", "errors", "optimizers", "ordering", "read"},
    "commands": {"checks", "core", "errors", "evidence", "exporters", "optimizers", "ordering", "probe", "read", "store"},
    "integrations": {"commands", "errors"},
    "plot": {"commands", "core", "errors", "evidence", "ordering", "read", "report", "store"},
    "cli": {"commands", "core", "errors", "plot", "probe", "read", "report"},
    "__main__": {"cli"},
}
"""Room -> rooms it may import."""
OUTSIDE: dict[str, set[str]] = {  # package -> the only places that may import it
    "click": {"cli"},
    "peft": {"ordering/sources/rebuilt/model.py", "probe", "commands/demo.py"},
    "jsonschema": {"store/validating.py"},
    "pickle": {"read/pickle/globals.py"},
    "_pickle": {"read/pickle/globals.py"},
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(file: Path) -> set[str]:
    """Return the absolute dotted names that the file imports, at any depth; what `ostate` itself shows to a type checker alone is no import."""
    if file == PACKAGE / "__init__.py":
        return set()
    package = ("ostate", *file.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            root = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            base = (root + (node.module or "")).rstrip(".")
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def name_of(file: Path) -> str:
    return ".".join(("ostate", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {name_of(file): file for file in SOURCES}


def modules_imported_by(file: Path) -> set[str]:
    """Return the modules of ostate that the file imports, at any depth, but for itself."""
    imported = set()
    for name in imports_of(file):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        imported.add(name)
    return imported - {"", name_of(file)}


def rooms_imported_by(file: Path) -> set[str]:
    rooms = {room_of(MODULES[module]) for module in modules_imported_by(file)}
    return rooms - {room_of(file), "__init__"}


@pytest.mark.parametrize("file", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    room, imported = room_of(file), rooms_imported_by(file)
    assert imported <= ALLOWED[room], f"{room} must not import {sorted(imported - ALLOWED[room])}"


def test_every_allowed_arrow_points_to_a_floor_below():
    floor = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
    assert {room_of(file) for file in SOURCES} <= set(floor)
    for room, below in ALLOWED.items():
        assert all(floor[other] < floor[room] for other in below), room


def test_every_allowed_arrow_is_there():
    """A row that nobody needs any more would let tomorrow's import through."""
    used = {(room_of(file), other) for file in SOURCES for other in rooms_imported_by(file)}
    assert not {(room, other) for room, below in ALLOWED.items() for other in below} - used


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Return the sets of modules that all reach one another."""
    reached: dict[str, set[str]] = {}
    for start in arrows:
        seen: set[str] = set()
        todo = list(arrows[start])
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += arrows[module]
        reached[start] = seen
    return [group for group in {frozenset(other for other in reached[one] if one in reached[other]) for one in arrows} if group]


def test_no_modules_import_each_other():
    assert circles({name: modules_imported_by(file) for name, file in MODULES.items()}) == []


def test_only_the_face_gives_names_on_demand():
    """A module's `__getattr__` hides from a reader, and from a type checker, where a name lies."""
    asked = {str(file.relative_to(PACKAGE)) for file in SOURCES if re.search(r"^ *def __getattr__\(name", file.read_text(), re.MULTILINE)}
    assert asked == {"__init__.py"}


def test_few_modules_lie_loose():
    assert {file.stem for file in PACKAGE.glob("*.py")} == {"__init__", "__main__", "errors", "integrations", "plot"}


@pytest.mark.parametrize("file", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_outside_package_has_its_place(file):
    where = str(file.relative_to(PACKAGE))
    for package, places in OUTSIDE.items():
        if any(name == package or name.startswith(package + ".") for name in imports_of(file)):
            assert any(where == place or where.startswith(place + "/") for place in places), f"{where} imports {package}"


@pytest.mark.parametrize("file", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_catches_everything(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.id if isinstance(node.type, ast.Name) else ""
            assert node.type is not None, f"{file}:{node.lineno}"
            assert caught not in {"Exception", "BaseException"}, f"{file}:{node.lineno}"


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n")[-2].split())


def test_the_face_tells_a_type_checker_where_each_name_lies():
    import ostate

    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    told = {alias.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level for alias in node.names}
    assert told == ostate._PUBLIC
    assert set(ostate.__all__) == {*told, "__version__"}


def test_import_ostate_imports_nothing_heavy():
    assert not modules_after("import ostate") & {"torch", "numpy", "click", "safetensors", "scipy", "peft"}


def test_no_public_function_is_hidden_by_a_module_of_the_same_name():
    """`import ostate.x` binds the module to `ostate.x`, whatever the lazy table says."""
    import ostate

    assert not set(ostate.__all__) & {room_of(file) for file in SOURCES}
