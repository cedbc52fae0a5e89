"""Run a `make_*` program once a session, and compare what was read with the truth it wrote."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ostate.core import files, system
from ostate.core.state import RawState
from tests import ranks, truth
from tests.real import sha256


def made(factory: pytest.TempPathFactory, program: str, **environment: str) -> Path:
    """Return the folder of `python -m tests.read.<program>`, run once for all workers of a session."""
    base = factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    out, done = shared / program, shared / f"{program}.done"
    with contextlib.suppress(FileExistsError):
        out.mkdir()
        try:
            ranks.program(f"tests.read.{program}", out, **environment)
            done.write_text("")
        except (AssertionError, subprocess.TimeoutExpired) as error:
            done.write_text(str(error))
    while not done.exists():
        time.sleep(0.2)
    if error := done.read_text():
        pytest.fail(f"{program} failed:\n{error}")
    return out


def watch_reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return a list that fills with (path, bytes) of every read of a local file."""
    seen: list[tuple[str, int]] = []
    read, read_into = system.read, system.read_into

    def path_of(descriptor: int) -> str:
        return next((path for path, (number, _) in files._local.items() if number == descriptor), "")

    def one(descriptor: int, length: int, offset: int) -> bytes:
        data = read(descriptor, length, offset)
        seen.append((path_of(descriptor), len(data)))
        return data

    def into(descriptor: int, view: memoryview, offset: int) -> int:
        count = read_into(descriptor, view, offset)
        seen.append((path_of(descriptor), count))
        return count

    monkeypatch.setattr(system, "read", one)
    monkeypatch.setattr(system, "read_into", into)
    return seen


def truth_of(folder: Path) -> dict[str, Any]:
    """Return the rows by name."""
    return {row["name"]: row for row in truth.read(folder / "truth.json")}


def order_of(folder: Path) -> list[str]:
    """Return the names of all positions."""
    return list(json.loads((folder / "order.json").read_text()))


def check(raw: RawState, folder: Path, *, order: list[str] | None = None, hyper: bool = True) -> None:
    """Every parameter of the truth is there, bit for bit, with its step, shape and hyperparameters, and nothing else has state."""
    rows = truth_of(folder)
    seen = set()
    for entry in raw.entries:
        if not entry.has_state:
            continue
        name = entry.name if order is None else order[entry.position]
        row = rows[name]
        assert {slot: sha256(value.read()) for slot, value in entry.slots.items()} == truth.slots_of(row), name
        assert entry.step == row.get("step"), name
        if entry.flat:
            assert entry.shape == (math.prod(row["shape"]),)
        else:
            assert entry.shape == tuple(row["shape"])
            assert all(slot.shape == entry.shape for slot in entry.slots.values())
        if hyper:
            group = raw.groups[entry.group].hyper
            assert {key: group[key] for key in ("lr", "eps", "weight_decay") if key in row} == {
                key: row[key] for key in ("lr", "eps", "weight_decay") if key in row
            }
            assert list(group.get("betas", [])) == row.get("betas", [])
        seen.add(name)
    assert seen == set(rows)


def two_group_order(rows: dict[str, Any]) -> list[str]:
    """The order in which `make_model.two_groups` hands parameters over."""
    return [name for name in rows if "lora_A" in name] + [name for name in rows if "lora_A" not in name]
