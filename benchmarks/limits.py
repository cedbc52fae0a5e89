"""Does ostate stay within its limits? Every command against something simple, in processes of their own.

A limit is on processor time, user and system, of the whole process against its peer's in the same round: other programs disturb it least. The clock
stands beside it; what is written is flushed to the disk there (`fsync`), which `cp` leaves out.

    python benchmarks/limits.py                 # the AdamW state of a Llama 7B LoRA of rank 64: 1.28 GB; about 6 GB of disk, deleted afterwards
    python benchmarks/limits.py --small         # rank 4: 80 MB. Start-up outweighs the rest there: ratios to `cp` and to reading are not judged
    python benchmarks/limits.py --rank 256      # 5 GB

One table a claim; `--json FILE` keeps the numbers.
"""

from __future__ import annotations

import os
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import made
import measure
from measure import CLICK, OSTATE, PYTHON, Row, Task

PEERS = {
    "torch.load, then save_file": (
        "import sys, torch; from safetensors.torch import save_file; s = torch.load(sys.argv[1], weights_only=True);"
        "save_file({f'{k}.{n}': t for k, e in s['state'].items() for n, t in e.items()}, sys.argv[2])"
    ),
    "torch.load(mmap=True), then save_file": (
        "import sys, torch; from safetensors.torch import save_file; s = torch.load(sys.argv[1], weights_only=True, mmap=True);"
        "save_file({f'{k}.{n}': t for k, e in s['state'].items() for n, t in e.items()}, sys.argv[2])"
    ),
}
LOOKS = {
    "torch.load": "import sys, torch; print(torch.load(sys.argv[1], weights_only=True)['state'].keys())",
    "torch.load(mmap=True)": "import sys, torch; print(torch.load(sys.argv[1], weights_only=True, mmap=True)['state'].keys())",
}
FULL_RANK, FULL_LAYERS = 64, 32
"""The size that ratios to `cp` and to reading are limits of; from there on start-up is a small part."""
Measured = tuple[str, list[Row], str]


def startup(rounds: int) -> Measured:
    """`import ostate` needs next to nothing, `ostate --help` no more than click."""
    tasks = [Task("import click", CLICK), Task("import ostate", [PYTHON, "-c", "import ostate"]), Task("ostate --help", [*OSTATE, "--help"])]
    limits = {"import ostate": (1.0, None), "ostate --help": (2.0, None)}
    return "start", measure.rows(measure.alternately(tasks, rounds), "import click", limits), "import click"


def inspecting(folder: Path, rounds: int) -> Measured:
    """Looking at a state costs the size of its index."""
    state = folder / "optimizer.pt"
    tasks = [Task("import click", CLICK), Task("ostate inspect", [*OSTATE, "inspect", state])]
    tasks += [Task(name, [PYTHON, "-c", code, state]) for name, code in LOOKS.items()]
    return "inspect", measure.rows(measure.alternately(tasks, rounds), "import click", {"ostate inspect": (1.6, 25)}), "import click"


def repairing(folder: Path, out: Path, rounds: int, *, judged: bool) -> Measured:
    """Repair is little more than a copy; the numbers' proof, the NaN's search, and an order that nobody recorded."""
    state, alone, bad, anonymous = folder / "optimizer.pt", folder / "alone", folder / "bad", folder / "anonymous" / "optimizer.pt"
    for place in (alone, bad):
        place.mkdir()
    os.link(state, alone / "optimizer.pt")
    clear = measure.forget(out)
    quiet = [*OSTATE, "-q", "repair"]
    tasks = [
        Task("cp", ["cp", state, out], clear),
        Task("repair --no-evidence, names recorded", [*quiet, alone, "--no-evidence", "-o", out], clear, (1,)),
        Task("repair, names recorded and proven", [*quiet, state, "-o", out], clear),
        Task(
            "repair, names from the base model's config, proven",
            [*quiet, anonymous, "--adapter", folder, "--base", folder / "base", "-o", out],
            clear,
            (0, 1),
        ),
    ]
    tasks += [Task(name, [PYTHON, "-c", code, state, out], clear) for name, code in PEERS.items()]
    costs = measure.alternately(tasks, rounds)
    spoil(anonymous)
    os.link(anonymous, bad / "optimizer.pt")
    order = folder / "order.txt"
    order.write_text("\n".join(names(folder)) + "\n")
    spoiled = [tasks[0], Task("repair, a NaN in every chunk (refused)", [*quiet, bad, "--no-evidence", "--order", order, "-o", out], clear, (3,))]
    again = measure.alternately(spoiled, rounds)
    limits = {"repair --no-evidence, names recorded": (2.2, 60), "repair, names recorded and proven": (5.0, 100)}
    found = measure.rows(costs, "cp", limits, judged=judged)
    found += measure.rows(again, "cp", {spoiled[1].name: (5.0, 60)}, judged=judged)[1:]
    return "repair", found, "cp"


def cold(folder: Path, out: Path, rounds: int, *, judged: bool) -> Measured:
    """The same by the clock, with nothing of the source in the page cache and all of the output on the disk."""
    state, alone = folder / "optimizer.pt", folder / "cold"
    alone.mkdir()
    os.link(state, alone / "optimizer.pt")

    def evict() -> None:
        measure.forget(out)()
        os.sync()
        with state.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    tasks = [
        Task("cp, then sync", ["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", state, out], evict),
        Task("repair --no-evidence, cold", [*OSTATE, "-q", "repair", alone, "--no-evidence", "-o", out], evict, (1,)),
    ]
    costs = {name: [replace(cost, cpu=cost.wall) for cost in seen] for name, seen in measure.alternately(tasks, rounds).items()}
    found = measure.rows(costs, "cp, then sync", {"repair --no-evidence, cold": (1.3, 60)}, judged=judged)
    return "cold, by the clock (no CPU here)", found, "cp, then sync"


def spoil(state: Path) -> None:
    """Put a NaN into every 256 KB of the file's tensors."""
    with state.open("r+b") as file:
        for at in range(1 << 18, state.stat().st_size - (1 << 18), 1 << 18):
            file.seek(at)
            file.write(struct.pack("<f", float("nan")))


def names(folder: Path) -> list[str]:
    """Return the names that the good file records."""
    from ostate import read as formats

    return [str(entry.name) for entry in formats.read(str(folder / "optimizer.pt")).entries]


def reading(folder: Path, named: Path, rounds: int, *, judged: bool) -> Measured:
    """Verify reads m, v and the adapter once; validate --deep, diff and export stay near reading their inputs."""
    state, adapter, target = folder / "optimizer.pt", folder / "adapter_model.safetensors", named.with_name("back.pt")
    inputs = [("state", [state]), ("state and adapter", [state, adapter]), ("two states", [state, named])]
    tasks = [Task(f"read the {name}", ["sh", "-c", 'cat "$@" > /dev/null', "sh", *paths]) for name, paths in inputs]
    tasks += [
        Task("verify", [*OSTATE, "-q", "verify", state]),
        Task("validate --deep", [*OSTATE, "-q", "validate", "--deep", named]),
        Task("diff", [*OSTATE, "-q", "diff", state, named], statuses=(0, 1)),
        Task("export --to torch", [*OSTATE, "-q", "export", named, "--to", "torch", "-o", target], measure.forget(target), (0, 1)),
    ]
    found = measure.alternately(tasks, rounds)
    found = {"read the state and adapter": found.pop("read the state and adapter"), **found}
    return "read", measure.rows(found, "read the state and adapter", {"verify": (9.0, 100)}, judged=judged), "reading the state and the adapter"


def main() -> int:
    """Run every claim."""
    parser = measure.options(__doc__)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--low-rank", type=int, default=0, help="gradients of so few directions, as some data leave them")
    parser.add_argument("--only", help="start, inspect, read, cold or repair")
    options = parser.parse_args()
    rank = options.rank or (4 if options.small else 64)
    rounds = min(options.rounds, 3) if options.small else options.rounds
    judged = rank >= FULL_RANK and options.layers >= FULL_LAYERS
    missed = 0

    def show(found: Measured) -> None:
        nonlocal missed
        title, rows, against = found
        missed += measure.report(title, rows, against, options.json)

    with tempfile.TemporaryDirectory(prefix="ostate-pyc-") as cache:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ.update(PYTHONPYCACHEPREFIX=cache, XDG_CACHE_HOME=cache)
        wanted: Sequence[str] = [options.only] if options.only else ["start", "inspect", "read", "cold", "repair"]
        if "start" in wanted:
            show(startup(3 * rounds))
        if set(wanted) == {"start"}:
            return missed
        with made.checkpoint(rank=rank, layers=options.layers, flags=("--named", "--anonymous", "--low-rank", str(options.low_rank))) as folder:
            out = folder.parent / "named.ostate.safetensors"
            steps: dict[str, Callable[[], Measured]] = {
                "inspect": lambda: inspecting(folder, rounds),
                "read": lambda: reading(folder, out, rounds, judged=judged),
                "cold": lambda: cold(folder, out, rounds, judged=judged),
                "repair": lambda: repairing(folder, out, rounds, judged=judged),
            }
            if "read" in wanted:
                measure.run(Task("repair", [*OSTATE, "-q", "repair", folder / "optimizer.pt", "-o", out]))
            for name, step in steps.items():
                if name in wanted:
                    show(step())
    return missed


if __name__ == "__main__":
    sys.exit(main())
