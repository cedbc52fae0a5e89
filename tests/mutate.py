"""Change one operator or constant of a file at a time, and see which changes no test notices: `python -m tests.mutate FILE -- TESTS…`.

The changed file lies in a copy of the package, so that the working tree stays as it is. Bounded by `--minutes`; mutants are taken in random order.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parents[1]
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.BitAnd: ast.BitOr,
}  # fmt: skip


def changes(tree: ast.AST) -> list[tuple[int, str]]:
    """Return (index of the node in `ast.walk`, kind) of everything that can be changed."""
    found = []
    for at, node in enumerate(ast.walk(tree)):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            found.append((at, "compare"))
        elif isinstance(node, (ast.BoolOp, ast.BinOp)) and type(node.op) in SWAPS:
            found.append((at, "operator"))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            found.append((at, "not"))
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            found.append((at, "constant"))
        elif isinstance(node, ast.Raise):
            found.append((at, "raise"))
    return found


def changed(tree: ast.AST, at: int, kind: str) -> tuple[str, int]:
    """Return the changed source and the line."""
    new = copy.deepcopy(tree)
    node = list(ast.walk(new))[at]
    if kind == "compare":
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif kind == "operator":
        node.op = SWAPS[type(node.op)]()
    elif kind == "not":
        node.op = ast.UAdd()
        node.operand = ast.Call(ast.Name("bool", ast.Load()), [node.operand], [])
    elif kind == "constant":
        node.value = (not node.value) if type(node.value) is bool else node.value + 1
    else:
        node.exc, node.cause = ast.parse("AssertionError()", mode="eval").body, None
    return ast.unparse(ast.fix_missing_locations(new)), node.lineno


def main() -> None:
    """Parse, copy, change, test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    source = (HERE / asked.file).read_text()
    tree = ast.parse(source)
    every = changes(tree)
    random.Random(asked.seed).shuffle(every)
    ends, killed, alive = time.monotonic() + 60 * asked.minutes, 0, []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("ostate", "schemas", "tests", "pyproject.toml"):
            place = shutil.copytree if (HERE / name).is_dir() else shutil.copy
            place(HERE / name, Path(folder) / name)
        command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout", "120", *asked.tests]
        environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
        for at, kind in every:
            if time.monotonic() > ends:
                break
            text, line = changed(tree, at, kind)
            (Path(folder) / asked.file).write_text(text)
            if subprocess.run(command, cwd=folder, env=environment, capture_output=True).returncode == 0:
                alive.append((line, kind))
                print(f"survived {asked.file}:{line} {kind}: {source.splitlines()[line - 1].strip()}", flush=True)
            else:
                killed += 1
    print(f"{asked.file}: {killed + len(alive)} of {len(every)} mutants tried, {killed} killed, {len(alive)} survived")


if __name__ == "__main__":
    main()
