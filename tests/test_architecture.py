"""Holds the arrows of the design: who may import whom, and what stays out of the fast path."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import architecture
from tests.tidiness import untidy

PACKAGE = Path(__file__).parent.parent / "ostate"
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
    "cli": {"commands", "core", "errors", "plot", "probe", "report"},
    "__main__": {"cli"},
}
"""Package -> packages it may import."""
OUTSIDE: dict[str, set[str]] = {  # package -> the only places that may import it
    "click": {"cli"},
    "peft": {"ordering/sources/rebuilt/build.py", "probe", "commands/demo_run.py"},
    "jsonschema": {"store/validating.py"},
    "pickle": {"read/pickle/globals.py"},
    "_pickle": {"read/pickle/globals.py"},
}
MODULES = architecture.sources()
EACH = pytest.mark.parametrize("module", MODULES)


def where(module: str) -> str:
    return str(MODULES[module].file.relative_to(PACKAGE))


def test_imports_point_one_way():
    links = architecture.places(MODULES)
    assert set(links) == set(ALLOWED)
    for place, imported in links.items():
        assert imported <= ALLOWED[place], f"{place} must not import {sorted(imported - ALLOWED[place])}"


def test_every_allowed_arrow_points_to_a_floor_below():
    floor = {place: height for height, places in enumerate(architecture.FLOORS) for place in places}
    assert set(ALLOWED) == set(floor)
    for place, below in ALLOWED.items():
        assert all(floor[other] < floor[place] for other in below), place


def test_every_allowed_arrow_is_there():
    """A row that nobody needs any more would let tomorrow's import through."""
    links = architecture.places(MODULES)
    assert not {(place, other) for place, below in ALLOWED.items() for other in below - links[place]}


def test_no_modules_import_each_other():
    assert architecture.circles(architecture.arrows(MODULES)) == []


def test_a_circle_of_imports_is_seen():
    assert architecture.circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [{"b", "c"}]


def test_only_the_face_gives_names_on_demand():
    """A module's `__getattr__` hides from a reader, and from a type checker, where a name lies."""
    assert architecture.names_on_demand(MODULES) == {"ostate"}


def test_every_import_within_a_function_was_measured_and_is_needed():
    """An import stands within a function only where a start would pay for it at the module's top; the page lists each."""
    page = architecture.PAGE.read_text(encoding="utf-8")
    there = Counter(module for module, _, _ in architecture.imports_in_functions(MODULES))
    assert architecture.measured_imports(page) == there, "run: python -m tests.import_costs"
    assert "needed by nothing" not in page


def test_the_page_shows_the_package_as_it_is():
    """Words and structure must be today's; counts of files, lines and imports may be a tenth behind, for each commit moves them."""
    page = architecture.PAGE.read_text(encoding="utf-8")
    new = architecture.renewed(page, MODULES)
    number = re.compile(r"(?<=\| )\d+(?= \|)")
    advice = "run: python -m tests.architecture"
    assert number.sub("N", page) == number.sub("N", new), advice
    for old, now in zip(number.findall(page), number.findall(new)):
        assert abs(int(old) - int(now)) <= max(2, int(now) / 10), advice


def test_few_modules_lie_loose():
    assert {file.stem for file in PACKAGE.glob("*.py")} == {"__init__", "__main__", "errors", "integrations", "plot"}


def test_each_package_has_its_folder_of_tests():
    """`pytest tests/<package>` is then all that a change of a package needs at first."""
    here = Path(__file__).parent
    folders = {path.parent.name for path in here.glob("*/test_*.py")}
    assert folders - {"attacks", "golden", "typing"} == set(ALLOWED) - {"__init__", "__main__", "errors"}


def test_files_and_functions_are_short():
    """Two files are tables, of opcodes and of other libraries' modules."""
    long = {where(name) for name, source in MODULES.items() if source.lines > 400}
    assert long == {"ordering/sources/transformers_orders.py", "read/pickle/opcodes.py"}
    functions = {
        f"{where(name)}: {node.name}": node.end_lineno - node.lineno + 1
        for name, source in MODULES.items()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: lines for name, lines in functions.items() if lines > 60} == {}


def test_no_two_classes_have_one_name():
    """A reader who searches for a name finds one thing; the preconditioner under another program's calls has that program's name."""
    named = Counter(node.name.lstrip("_") for source in MODULES.values() for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef))
    assert {name for name, count in named.items() if count > 1} == {"AdamPreconditioner"}


@EACH
def test_every_value_has_a_type(module):
    """`Any` switches the type checker off: what a file holds is `Json` or `object` where it comes in, and looked at before it is used."""
    assert [node.lineno for node in ast.walk(MODULES[module].tree) if isinstance(node, ast.Name) and node.id == "Any"] == []


@EACH
def test_no_private_name_of_another_module_is_imported(module):
    imported = {name for name in architecture.imports_of(MODULES[module]) if name.startswith("ostate.")}
    assert {name for name in imported if name.rpartition(".")[2].startswith("_") and not name.endswith("__")} == set()


@EACH
def test_each_outside_package_has_its_place(module):
    imported = architecture.imports_of(MODULES[module])
    for package, places in OUTSIDE.items():
        if any(name == package or name.startswith(package + ".") for name in imported):
            assert any(where(module) == place or where(module).startswith(place + "/") for place in places), f"{module} imports {package}"


@EACH
def test_nobody_catches_everything(module):
    for node in ast.walk(MODULES[module].tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.id if isinstance(node.type, ast.Name) else ""
            assert node.type is not None, f"{module}:{node.lineno}"
            if (module, caught) != ("ostate.cli", "Exception"):  # where a program ends
                assert caught not in {"Exception", "BaseException"}, f"{module}:{node.lineno}"


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

    assert not set(ostate.__all__) & {source.place for source in MODULES.values()}


def test_the_repository_holds_no_link_and_no_leftover():
    """A link to a folder of one machine breaks every other; a checkout and an unpacked archive are both looked at."""
    assert untidy(PACKAGE.parent) == []


@pytest.mark.parametrize("with_git", [True, False], ids=["checkout", "folder"])
def test_a_link_and_a_leftover_are_seen(tmp_path, with_git):
    (tmp_path / ".gitignore").write_text(".venv\n__pycache__/\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("a page")
    (tmp_path / "docs" / "page.md.orig").write_text("an older page")
    (tmp_path / "docs" / "again").symlink_to("page.md")
    (tmp_path / "latest").symlink_to("docs", target_is_directory=True)
    if with_git:
        git = shutil.which("git")
        assert git, "the history of this repository is git's"
        for words in (["init", "-q"], ["add", "."]):
            subprocess.run([git, *words], cwd=tmp_path, check=True)
    assert sorted(untidy(tmp_path)) == ["docs/again: a link", "docs/page.md.orig: *.orig", "latest: a link"]
