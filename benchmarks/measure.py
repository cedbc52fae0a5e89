"""Measure whole processes: CPU time and peak memory of a child, alternately with its peers, medians; a table, and JSON.

Processor time of the whole process is what a shared machine disturbs least; a limit is a ratio to something simple measured in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
PYTHON = sys.executable
OSTATE = [PYTHON, "-c", "from ostate.cli import run; run()"]
"""What the installed `ostate` script does."""
CLICK = [PYTHON, "-c", "import click"]
MB = 1 << 20


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    cpu: float
    """Seconds, user and system."""
    wall: float
    peak: float
    """MB of resident memory."""
    status: int


@dataclass(frozen=True)
class Task:
    """One command to measure."""

    name: str
    command: Sequence[str | os.PathLike[str]]
    before: Callable[[], None] | None = None
    statuses: tuple[int, ...] = (0,)
    """Exit codes that mean it did its work."""
    environment: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Row:
    """Medians of a task, and a limit where there is one."""

    name: str
    cpu: float
    wall: float
    peak: float
    ratio: float
    """CPU against the measure of this table, in the same round."""
    limit: float | None = None
    most: float | None = None
    """MB."""
    least: float = 0.0
    """CPU of the round that took least."""
    wall_ratio: float = 0.0
    """The same as `ratio`, by the clock: no limit is on it, since whatever else runs is in it."""
    judged: bool = True
    """False: the limit on the ratio is one of another size, and not judged."""

    @property
    def met(self) -> bool | None:
        """True when every limit holds; None where none is judged."""
        limit = self.limit if self.judged else None
        if limit is None and self.most is None:
            return None
        return (limit is None or self.ratio <= limit) and (self.most is None or self.peak <= self.most)

    @property
    def verdict(self) -> str:
        """What the table says of it."""
        if self.met is False:
            return "MISSED"
        if self.limit is not None and not self.judged:
            return "not judged at this size"
        return "met" if self.met else ""


def run(task: Task) -> Cost:
    """Run a task once. This process stays small: a child's peak counts from the size of its parent."""
    if task.before is not None:
        task.before()
    environment = {**os.environ, **(task.environment or {})}
    began = time.monotonic()
    with subprocess.Popen([os.fspath(word) for word in task.command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as child:
        said = child.stdout.read() if child.stdout else b""
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in task.statuses:
        raise SystemExit(f"{task.name}: exit {child.returncode}\n{said.decode(errors='replace')[-2000:]}")
    return Cost(used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss * 1024 / MB, child.returncode)


def alternately(tasks: Sequence[Task], rounds: int, *, warm: bool = True) -> dict[str, list[Cost]]:
    """Run all tasks in turn, `rounds` times over, after one round that is thrown away when `warm`."""
    found: dict[str, list[Cost]] = {task.name: [] for task in tasks}
    for number in range(rounds + warm):
        for task in tasks:
            cost = run(task)
            if number >= warm:
                found[task.name].append(cost)
    return found


def median(costs: Sequence[Cost]) -> Cost:
    """Return the medians of CPU and wall time, and the largest peak."""
    return Cost(statistics.median(c.cpu for c in costs), statistics.median(c.wall for c in costs), max(c.peak for c in costs), costs[0].status)


def rows(
    costs: Mapping[str, Sequence[Cost]], measure: str, limits: Mapping[str, tuple[float | None, float | None]], *, judged: bool = True
) -> list[Row]:
    """Return a row a task; ratios are medians over rounds of CPU, and of the clock, against the same round's `measure`."""
    made = []
    for name, seen in costs.items():
        middle = median(seen)
        ratio = statistics.median(one.cpu / other.cpu for one, other in zip(seen, costs[measure]))
        wall_ratio = statistics.median(one.wall / other.wall for one, other in zip(seen, costs[measure]))
        least = min(one.cpu for one in seen)
        made.append(Row(name, middle.cpu, middle.wall, middle.peak, ratio, *limits.get(name, (None, None)), least, wall_ratio, judged))
    return made


def table(title: str, made: Sequence[Row], measure: str) -> str:
    """Return the rows as a Markdown table."""
    head = f"| {title} | CPU s, median | least | CPU / {measure} | limit | clock s | clock / {measure} | peak MB | limit | |"
    lines = [head, "|---" * 10 + "|"]
    for row in made:
        limit = "" if row.limit is None else f"{row.limit:.2g}"
        most = "" if row.most is None else f"{row.most:.0f}"
        clock = f"{row.wall:.2f} | {row.wall_ratio:.2f}"
        lines.append(
            f"| {row.name} | {row.cpu:.3f} | {row.least:.3f} | {row.ratio:.2f} | {limit} | {clock} | {row.peak:.0f} | {most} | {row.verdict} |"
        )
    return "\n".join(lines)


def options(description: str | None) -> argparse.ArgumentParser:
    """Return what every script here understands."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a sixteenth of the size, fewer rounds")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    return parser


def report(title: str, made: Sequence[Row], measure: str, path: Path | None) -> int:
    """Print the table, write the JSON, and return 1 when a limit is missed."""
    print(f"\n{table(title, made, measure)}\n", flush=True)
    if path is not None:
        known = json.loads(path.read_text()) if path.exists() else {}
        known[title] = [{**asdict(row), "met": row.met} for row in made]
        path.write_text(json.dumps(known, indent=1) + "\n")
    return int(any(row.met is False for row in made))


def forget(*paths: Path) -> Callable[[], None]:
    """Return what removes files, for a task that writes them anew."""

    def remove() -> None:
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    return remove
