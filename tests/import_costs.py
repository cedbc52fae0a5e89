"""What each import within a function saves, measured: `python -m tests.import_costs` writes that table of docs/architecture.md anew (some minutes).

Every start below runs once in a process of its own. In copies of that process, taken when it has done its work, each import that stands within a
function of a module that it loaded is made, one a copy: what is loaded then, and the processor time it takes, is what the start would pay with the
import at the module's top. An import that costs no start a fiftieth of its own time, and brings nothing that a start promises to do without, is
listed as needed by nothing: it belongs at the top. What brings a package that the core does not ask for is found from the imports alone.
"""

from __future__ import annotations

import marshal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests import architecture

ROOT = architecture.ROOT
RUN = "tests/cases/long/long_opt/checkpoint-300"
NAMED = "tests/golden/0.1.0/lora.ostate.safetensors"
SHARE = 0.02
"""Of a start's own processor time: what an import may cost it. Two runs of one start differ by about as much."""
COMMANDS = ("inspect", "names", "repair", "verify", "validate", "diff", "export", "probe", "report", "demo", "completion")
STARTS: dict[str, list[str]] = {
    # start -> words of the command line; OUT is a folder of its own
    "help": ["--help"],
    **{f"help of {name}": [name, "--help"] for name in COMMANDS},
    "inspect, a file": ["inspect", f"{RUN}/optimizer.pt"],
    "inspect, a folder": ["inspect", RUN],
    "inspect, in parts": ["inspect", "tests/cases/distributed/fsdp2_dcp"],
    "inspect, DeepSpeed": ["inspect", "tests/cases/distributed/ds_z2"],
    "inspect, as JSON": ["inspect", RUN, "--json"],
    "inspect, nothing there": ["inspect", "tests/golden"],
    **{f"export, {layout}": ["export", NAMED, "--to", layout, "-o", f"OUT/{layout}"] for layout in ("torch", "accelerate", "less", "bergson")},
    "names": ["names", RUN],
    "repair": ["repair", RUN, "-o", "OUT/a.safetensors"],
    "repair, no evidence": ["repair", RUN, "--no-evidence", "-o", "OUT/b.safetensors"],
    "verify": ["verify", RUN],
    "validate": ["validate", NAMED],
    "diff": ["diff", NAMED, NAMED],
    "report": ["report", NAMED, "-o", "OUT/page.html"],
}
LIBRARY = ("ostate", "ostate.probe", "ostate.plot", "ostate.integrations")
"""Modules that a person's own program imports: starts too."""
CORE = {"click", "jsonschema", "numpy", "rich"}
NOTHING = "needed by nothing"
Targets = dict[str, tuple[str, list[str]]]
"""`module:line` -> the module, and the dotted names that the statement brings."""
CHILD = """
import marshal, os, sys, time
code, targets, out = marshal.load(sys.stdin.buffer)
sys.path.insert(0, os.getcwd())
try:
    exec(code)
except SystemExit:
    pass
def load(name):
    while name not in sys.modules:
        try:
            __import__(name)
        except ModuleNotFoundError:
            name, dot, _ = name.rpartition(".")
            if not dot:
                raise
loaded, spent, costs = set(sys.modules), time.process_time(), {}
for key, (module, names) in targets.items():
    if module not in loaded:
        continue
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        begin = time.process_time()
        for name in names:
            load(name)
        took = time.process_time() - begin
        os.write(writer, marshal.dumps((took, "numpy" in sys.modules and "numpy" not in loaded)))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        costs[key] = marshal.loads(pipe.read() or marshal.dumps(None))
    os.waitpid(child, 0)
with open(out, "wb") as file:
    marshal.dump((spent, loaded, costs), file)
"""
"""Run by a bare interpreter; `marshal` is built into it and loads nothing that a start would then seem to have already."""


class Cost(NamedTuple):
    """What one start would pay for one import at a module's top."""

    start: str
    share: float
    """Of the start's own processor time."""
    numpy: bool
    """True where it would then load numpy, and does not now."""


def measured(start: str, code: str, targets: Targets) -> tuple[set[str], dict[str, Cost]]:
    """Run `code` in a process of its own; return the modules that it loads, and statement -> cost, for the statements of these modules."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/costs"
        asked = marshal.dumps((code.replace("OUT", folder), targets, out))
        done = subprocess.run([sys.executable, "-c", CHILD], input=asked, cwd=ROOT, capture_output=True, check=False)
        if done.returncode:
            raise SystemExit(f"{start}: {done.stderr.decode()}")
        spent, loaded, costs = marshal.loads(Path(out).read_bytes())
    failed = [key for key, row in costs.items() if row is None]
    if failed:
        raise SystemExit(f"{start}: could not import what stands at {', '.join(failed)}")
    return set(loaded), {key: Cost(start, took / spent, numpy) for key, (took, numpy) in costs.items()}


def all_costs(targets: Targets) -> dict[str, list[Cost]]:
    """Return statement -> its cost for each start that loads its module; where none does, for importing that module alone."""
    programs = {start: f"from ostate.cli import main\nmain({words!r})" for start, words in STARTS.items()}
    programs |= {f"import {module}": f"import {module}" for module in LIBRARY}
    found: dict[str, list[Cost]] = {key: [] for key in targets}
    for start, code in programs.items():
        for key, cost in measured(start, code, targets)[1].items():
            found[key].append(cost)
        print(start, file=sys.stderr, flush=True)
    for module in sorted({targets[key][0] for key, costs in found.items() if not costs}):
        for key, cost in measured(f"import {module}", f"import {module}", targets)[1].items():
            found[key] += [] if found[key] else [cost]
    return found


def packages_needed(modules: dict[str, architecture.Source]) -> dict[str, set[str]]:
    """Return module -> packages outside the core without which it cannot be imported, by the imports at the tops of all modules that it reaches."""
    links = architecture.arrows(modules, tops=True)
    needed = {}
    for start in modules:
        reached, todo = {start}, [start]
        while todo:
            new = links[todo.pop()] - reached
            reached |= new
            todo += new
        names = {name.partition(".")[0] for module in reached for name in architecture.imports_of(modules[module], tops=True)}
        needed[start] = names - {"ostate", *CORE} - set(sys.stdlib_module_names)
    return needed


def brings(module: str, names: Sequence[str], needed: dict[str, set[str]]) -> set[str]:
    """Return the packages outside the core that an import at the top of `module` would bring, and that the module does not need as it is."""
    brought: set[str] = set()
    for name in names:
        while name.startswith("ostate.") and name not in needed:
            name = name.rpartition(".")[0]
        brought |= needed.get(name, {name.partition(".")[0]} - {*CORE} - set(sys.stdlib_module_names))
    return brought - needed[module]


def reason(costs: Sequence[Cost]) -> tuple[str, Cost | None]:
    """Return in three words what an import would break at a module's top, and the cost that shows it; (NOTHING, None) if nothing."""
    for why, breaks in (
        ("numpy stays out", lambda cost: cost.numpy and cost.start.startswith(("help", "inspect", "export"))),
        ("help stays quick", lambda cost: cost.start.startswith("help") and cost.share > SHARE),
        ("inspect stays quick", lambda cost: cost.start.startswith("inspect") and cost.share > SHARE),
        ("others stay quick", lambda cost: cost.share > SHARE),
    ):
        broken = [cost for cost in costs if breaks(cost)]
        if broken:
            return why, max(broken, key=lambda cost: cost.share)
    return NOTHING, None


def table(reasons: dict[str, tuple[str, Cost | None]], targets: Targets) -> str:
    """Return the page's table: a reason a row, how often, what it would cost, and where."""
    rows: dict[str, list[tuple[str, Cost | None]]] = {}
    for key, (why, worst) in reasons.items():
        rows.setdefault(why, []).append((targets[key][0].removeprefix("ostate."), worst))
    lines = ["| why | times | the most it would cost a start | where |", "|---|---|---|---|"]
    for why, row in sorted(rows.items(), key=lambda item: -len(item[1])):
        costs = [cost for _, cost in row if cost]
        worst = max(costs, key=lambda cost: cost.share, default=None)
        price = f"{worst.share:.0%} of `{worst.start}`" if worst else ""
        where = ", ".join(f"{module} ({count})" if count > 1 else module for module, count in sorted(Counter(module for module, _ in row).items()))
        lines.append(f"| {why} | {len(row)} | {price} | {where} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print each import, and write the table."""
    modules = architecture.sources()
    targets = {f"{module}:{line}": (module, names) for module, line, names in architecture.imports_in_functions(modules)}
    needed = packages_needed(modules)
    missing = {key for key, row in targets.items() if brings(*row, needed)}
    found = all_costs({key: row for key, row in targets.items() if key not in missing})
    reasons = {key: ("not always installed", None) if key in missing else reason(found[key]) for key in targets}
    for key, (why, worst) in reasons.items():
        most = worst or max(found.get(key, ()), key=lambda cost: cost.share, default=None)
        print(f"{why:22} {f'{most.share:.1%} of {most.start}' if most else '':40} {key} {' '.join(targets[key][1])}")
    page = architecture.PAGE.read_text(encoding="utf-8")
    architecture.PAGE.write_text(architecture.with_table(page, "within functions", table(reasons, targets)), encoding="utf-8")


if __name__ == "__main__":
    main()
