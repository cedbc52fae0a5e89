"""Holds the arrows of the design: who may import whom, and what stays out of the fast path."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ostate"
BASE = {"digests", "errors", "files", "model", "quiet"}
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "digests": set(),
    "errors": set(),
    "files": {"errors"},
    "quiet": set(),
    "tensors": {"errors", "files"},
    "model": {"digests", "errors", "files", "named", "tensors"},
    "named": {"errors", "files", "model", "tensors"},
    "optimizers": BASE,
    "formats": BASE | {"optimizers"},
    "evidence": BASE | {"optimizers", "ordering"},
    "ordering": BASE | {"optimizers"},
    "values": BASE,
    "publish": BASE,
    "join": BASE | {"optimizers"},
    "checks": BASE | {"optimizers", "values"},
    "store": BASE | {"optimizers", "publish", "schemas", "values"},
    "exporters": BASE | {"optimizers", "publish"},
    "probe": BASE | {"optimizers"},
    "report": BASE | {"optimizers"},
}
"""Room -> rooms it may import. What joins rooms (repair, cli and their like) may import any room but cli."""
JOINS = {
    "batch",
    "choosing",
    "demo",
    "comparison",
    "exporting",
    "inspection",
    "integrations",
    "migration",
    "plot",
    "program",
    "saving",
    "target",
    "validation",
    "weights",
}
OUTSIDE: dict[str, set[str]] = {  # package -> the only places that may import it
    "click": {"cli"},
    "peft": {"ordering/skeleton.py", "probe", "demo.py"},
    "jsonschema": {"store/validating.py"},
    "pickle": {"formats/pickles.py"},
    "_pickle": {"formats/pickles.py"},
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(file: Path) -> set[str]:
    """Return the absolute dotted names that the file imports, at any depth."""
    package = ("ostate", *file.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            root = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            base = (root + (node.module or "")).rstrip(".")
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def rooms_imported_by(file: Path) -> set[str]:
    rooms = {name.split(".")[1] for name in imports_of(file) if name.startswith("ostate.")}
    known = {room_of(source) for source in SOURCES} | {"schemas"}
    return (rooms & known) - {room_of(file)}


@pytest.mark.parametrize("file", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(file):
    room = room_of(file)
    imported = rooms_imported_by(file)
    if room in JOINS:
        assert "cli" not in imported
    elif room != "cli":
        assert imported <= ALLOWED[room], f"{room} must not import {sorted(imported - ALLOWED[room])}"


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


def test_import_ostate_imports_nothing_heavy():
    assert not modules_after("import ostate") & {"torch", "numpy", "click", "safetensors", "scipy", "peft"}


def test_no_public_function_is_hidden_by_a_module_of_the_same_name():
    """`import ostate.x` binds the module to `ostate.x`, whatever the lazy table says."""
    import ostate

    assert not set(ostate.__all__) & {room_of(file) for file in SOURCES}
