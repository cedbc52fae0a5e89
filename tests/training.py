"""Which tests train: their module, a module of the tests that it imports, or that of a fixture they ask for, steps an optimizer over gradients.

`tests/conftest.py` marks them `trains`: `pytest tests/ordering -m "not trains and not long"` leaves them out, and takes seconds.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
TRAINS = frozenset(["backward", "start_processes", "Trainer", "SFTTrainer", "torchrun", "torch.distributed.run"])
"""What a module that trains says somewhere: a call, a class, a program."""


@cache
def trains(module: str) -> bool:
    """Return whether a module of the tests, by its dotted name, trains: by itself, or through another module of the tests that its top imports."""
    return _reaches(module, set())


def _reaches(module: str, seen: set[str]) -> bool:
    file = _file_of(module)
    if file is None or module in seen:
        return False
    seen.add(module)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if any(_word(node) in TRAINS for node in ast.walk(tree)):
        return True
    names = [name for name in _imported(module, tree) if name.startswith("tests.")]
    return any(_reaches(name if _file_of(name) else name.rpartition(".")[0], seen) for name in names)


def _word(node: ast.AST) -> object:
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    return node.id if isinstance(node, ast.Name) else node.name if isinstance(node, ast.alias) else None


def _file_of(module: str) -> Path | None:
    place = ROOT.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _imported(module: str, tree: ast.Module) -> list[str]:
    """Return the absolute dotted names that the module's own top imports."""
    found: list[str] = []
    package = module.split(".")[:-1]
    for node in tree.body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])] if node.level else [str(node.module)]
            found += [".".join([*base, alias.name]) for alias in node.names]
    return found
