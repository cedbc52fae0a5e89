"""CONTRIBUTING names what is there: every file, every table in its file, every module that a command runs."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TABLES = re.findall(r"`(_?[A-Z][A-Z_]+)`[^`().:]*\(`([\w/]+\.py)`", TEXT)


def names_of(file: Path) -> set[str]:
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_every_file_that_is_named_is_there():
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", TEXT))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(("table", "file"), TABLES)
def test_every_table_that_takes_a_row_lies_in_the_file_named_beside_it(table, file):
    assert table in names_of(ROOT / file)


def test_every_recipe_names_its_table():
    recipes = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    for recipe in recipes:
        if recipe.startswith("Add "):
            assert any(f"`{table}`" in recipe for table, _ in TABLES), recipe.partition("\n")[0]


def test_every_module_that_a_command_runs_is_there():
    for module in re.findall(r"python -m ([\w.]+)", TEXT):
        assert find_spec(module) is not None, module
