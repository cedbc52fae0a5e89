"""Change one operator or constant of a file at a time, and see which changes no test notices: `python -m tests.mutate FILE… --tests TESTS…`.

The changed file lies in a copy of the package, so that the working tree stays as it is. One run of the tests, traced, tells which of them reach
which line; a mutant meets only those, and what survives them meets `--then`. Mutants are taken in random order, within `--minutes` a file.
Every run is a fork of a process that has imported the heavy packages already, so that a mutant costs its tests and no more.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

HERE = Path(__file__).parents[1]
HEAVY = ("numpy", "torch", "safetensors.numpy", "safetensors.torch", "hypothesis", "jsonschema", "peft", "transformers")
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
MOST_MEMORY = 12 << 30
PATIENCE = 30.0
"""Seconds that a mutant gets beyond ten times what its tests took unchanged."""


def changes(tree: ast.Module) -> list[tuple[int, str]]:
    """Return (index of the node in `ast.walk`, kind) of everything that can be changed; decorators and annotations decide nothing."""
    idle = {id(inner) for outer in ast.walk(tree) for part in _idle(outer) for inner in ast.walk(part)}
    return [(at, kind) for at, node in enumerate(ast.walk(tree)) if id(node) not in idle and (kind := _kind(node))]


def _idle(node: ast.AST) -> Iterator[ast.AST]:
    yield from getattr(node, "decorator_list", ())
    yield from (part for name in ("annotation", "returns") if (part := getattr(node, name, None)) is not None)


def _kind(node: ast.AST) -> str:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        return "compare"
    if isinstance(node, (ast.BoolOp, ast.BinOp)) and type(node.op) in SWAPS:
        return "operator"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return "not"
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        return "constant"
    return "raise" if isinstance(node, ast.Raise) else ""


def changed(tree: ast.Module, at: int, kind: str) -> tuple[str, int, str]:
    """Return the changed source, the line, and the changed piece as it reads now."""
    new = copy.deepcopy(tree)
    node: Any = list(ast.walk(new))[at]
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
    return ast.unparse(ast.fix_missing_locations(new)), node.lineno, ast.unparse(node)


class Reached:
    """A pytest plugin that notes which test reaches which line of some files, and what each test takes."""

    def __init__(self, files: list[Path]) -> None:
        self._files = frozenset(map(str, files))
        self._now = ""
        self.lines: dict[tuple[str, int], set[str]] = defaultdict(set)
        self.seconds: dict[str, float] = {}

    def start(self) -> None:
        """Note lines from now on."""
        sys.settrace(self._call)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.lines[frame.f_code.co_filename, frame.f_lineno].add(self._now)
        return self._line

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Time the test."""
        began = time.monotonic()
        result = yield
        self.seconds[item.nodeid] = time.monotonic() - began
        return result  # type: ignore[return-value]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        """What a fixture reaches counts for every test of the file: it may be shared."""
        self._now = item.nodeid.split("::")[0]
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """What the test itself reaches counts for it."""
        sys.settrace(self._call)
        self._now = item.nodeid
        return (yield)

    def tests_of(self) -> dict[str, dict[int, list[str]]]:
        """Return file -> line -> tests, quick ones first; what is reached while importing counts for all tests that reach the file at all."""
        found: dict[str, dict[int, list[str]]] = {}
        for file in self._files:
            lines = {line: names for (at, line), names in self.lines.items() if at == file}
            reaching = {name for names in lines.values() for name in names if name}
            every = [test for test in self.seconds if test in reaching or test.split("::")[0] in reaching]
            chosen = {line: every if "" in names else [t for t in every if t in names or t.split("::")[0] in names] for line, names in lines.items()}
            found[file] = {line: sorted(tests, key=self.seconds.__getitem__) for line, tests in chosen.items()}
        return found


def forked(checkout: Path, work: Callable[[], int], seconds: float) -> int:
    """Run `work` in a fork that sees the copy in place of the tree; return its exit code, -1 when it took too long."""
    child = os.fork()
    if child == 0:
        os.setsid()
        quiet = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(quiet, descriptor)
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "ostate")]:
            del sys.modules[name]
        sys.path.insert(0, str(checkout))
        os.environ["PYTHONPATH"] = str(checkout)
        sys.dont_write_bytecode = True
        os.chdir(checkout)
        code = 70
        try:
            code = int(work())
        finally:
            os._exit(code)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) or 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


OPTIONS = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout", "0"]


def baseline(checkout: Path, files: list[Path], tests: list[str]) -> tuple[dict[str, dict[str, list[str]]], dict[str, float]]:
    """Run the tests once, traced. Returns file -> line -> tests, and test -> seconds."""
    notes = checkout / "reached.json"

    def work() -> int:
        seen = Reached([checkout / file for file in files])
        seen.start()
        code = pytest.main([*OPTIONS, *tests], plugins=[seen])
        notes.write_text(json.dumps([seen.tests_of(), seen.seconds]))
        return int(code)

    code = forked(checkout, work, 3600)
    if code:
        sys.exit(f"the tests fail unchanged, with exit code {code}: {' '.join(tests)}")
    lines, seconds = json.loads(notes.read_text())
    return lines, seconds


def mutate(checkout: Path, file: Path, lines: dict[str, list[str]], seconds: dict[str, float], asked: argparse.Namespace) -> None:
    """Try the mutants of one file until the time is over."""
    source = (checkout / file).read_text()
    tree = ast.parse(source)
    every = changes(tree)
    print(f"{file}: {len(every)} mutants; {len({t for ts in lines.values() for t in ts})} of {len(seconds)} tests reach it", flush=True)
    random.Random(asked.seed).shuffle(every)
    ends, tried, alive = time.monotonic() + 60 * asked.minutes, 0, 0
    for at, kind in every:
        if time.monotonic() > ends:
            break
        text, line, now = changed(tree, at, kind)
        (checkout / file).write_text(text)
        chosen = lines.get(str(line), [])
        patience = PATIENCE + 10 * sum(map(seconds.__getitem__, chosen))
        survived = not chosen or forked(checkout, lambda chosen=chosen: pytest.main(["-x", *OPTIONS, *chosen]), patience) == 0
        if survived and asked.then:
            survived = forked(checkout, lambda: pytest.main(["-x", *OPTIONS, *asked.then]), 1800) == 0
        tried, alive = tried + 1, alive + survived
        if survived:
            how = f"past {len(chosen)} tests" if chosen else "reached by none"
            print(f"survived {file}:{line} {kind}, {how}: {source.splitlines()[line - 1].strip()}  ->  {now}", flush=True)
    (checkout / file).write_text(source)
    print(f"{file}: {tried} of {len(every)} mutants tried, {tried - alive} killed, {alive} survived", flush=True)


def main() -> None:
    """Parse, copy, import what is heavy, change, test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--tests", nargs="+", required=True)
    parser.add_argument("--then", nargs="*", default=[])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    for name in HEAVY:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("ostate", "schemas", "tests", "pyproject.toml"):
            place = shutil.copytree if (HERE / name).is_dir() else shutil.copy
            place(HERE / name, Path(folder) / name)
        checkout = Path(folder).resolve()
        lines, seconds = baseline(checkout, asked.files, asked.tests)
        for file in asked.files:
            mutate(checkout, file, lines[str(checkout / file)], seconds, asked)


if __name__ == "__main__":
    main()
