"""Several processes over gloo, for tests: what was imported before is not imported again, and no port is asked for that another could take."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).parent.parent
HOW = "fork" if sys.platform == "linux" else "spawn"
"""Elsewhere a fork of a process that holds torch is not safe, or not there."""


def _joined(rank: int, world: int, meeting: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Join the other processes through a file, run `work(rank, *arguments)`, and leave together."""
    # DeepSpeed and Accelerate ask for the address and the port; with a group there already they use neither.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(meeting, world), rank=rank, world_size=world)
    work(rank, *arguments)
    dist.barrier()
    dist.destroy_process_group()


def run(world: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run `work(rank, *arguments)` in `world` processes at once; `torch.multiprocessing`'s error where one fails."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        torch.multiprocessing.start_processes(_joined, args=(world, meeting, work, arguments), nprocs=world, start_method=HOW)


def make_all(world: int, makers: Sequence[Callable[[Path], None]], out: Path) -> None:
    """Run every maker of a case in `world` processes at once, one after another; each writes below `out`."""
    out.mkdir(parents=True, exist_ok=True)
    run(world, _made, makers, out)


def _made(rank: int, makers: Sequence[Callable[[Path], None]], out: Path) -> None:
    for make in makers:
        make(out)
        dist.barrier()


def program(module: str, *words: object, **environment: str) -> None:
    """Run `python -m MODULE WORDS…`, one of our programs that calls `run`; an error with the end of what it said where it fails."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, words)]
    with tempfile.TemporaryFile("w+") as said:  # a pipe that nobody empties would stop a process that says much
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=said, stderr=subprocess.STDOUT, timeout=500, check=False)
        said.seek(0)
        assert done.returncode == 0, said.read()[-4000:]
