"""The public names are typed for who imports ostate: two strict type checkers know each of them, and say the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WANTED = {
    number: said
    for number, line in enumerate((HERE / "program.py").read_text().splitlines(), 1)
    for said in re.findall(r"reveal_type\(.*\)  # (.*)", line)
}


def run(*words):
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def one_literal(match):
    values = re.findall("'[^']*'", match[0])
    return f"Literal[{', '.join(values)}]"


def plain(said):
    """Return a type without the modules that mypy puts in front of each class, literals together."""
    said = re.sub(r"\b(?:\w+\.)+(?=\w)", "", said)
    return re.sub(r"Literal\[('[^]]*')\](?: \| Literal\[('[^]]*')\])+", one_literal, said)


def test_mypy_knows_what_each_public_name_gives():
    """`assert_type` fails on Any, and an ignore that nothing needs is an error under mypy's strict mode."""
    done = run("mypy", "tests/typing/program.py", "tests/typing/public.py")
    assert done.returncode == 0, done.stdout
    said = {int(number): plain(what) for number, what in re.findall(r'program\.py:(\d+): note: Revealed type is "(.*)"', done.stdout)}
    assert said == WANTED


def test_pyright_knows_the_same():
    done = run("pyright", "--pythonpath", sys.executable, "-p", "tests/typing/pyrightconfig.json", "--outputjson")
    found = json.loads(done.stdout)["generalDiagnostics"]
    assert [one for one in found if one["severity"] != "information"] == []
    said = {one["range"]["start"]["line"] + 1: one["message"].rpartition('" is "')[2].removesuffix('"') for one in found}
    assert said == WANTED
    assert len(WANTED) > 20
