"""Walks the README's way in a fresh environment and writes docs/first-five-minutes.md from what it saw.

usage: python examples/first_five_minutes.py
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "first-five-minutes.md"
CHECKPOINT = "ostate-demo/run/checkpoint-24"
RECORDS = "".join(f'{{"input_ids": [{", ".join(str((7 * i + 3 * j) % 60 + 1) for j in range(24))}]}}\n' for i in range(4))

STEPS: tuple[tuple[str, str], ...] = (
    ("Train a tiny LoRA with the real Trainer, break its state as people do, repair it, probe with it:", "ostate demo"),
    ("The checkpoint that it left is an ordinary one. What is in it?", f"ostate inspect {CHECKPOINT} --adapter {CHECKPOINT}"),
    ("Give it names, proven from the numbers:", f"ostate repair {CHECKPOINT} --base ostate-demo/base -o lora.ostate.safetensors"),
    ("Is the file sound, to the last byte?", "ostate validate lora.ostate.safetensors --deep"),
    ("Do these numbers belong to this adapter?", f"ostate verify lora.ostate.safetensors --adapter {CHECKPOINT}"),
    ("The same facts as one page of pictures:", f"ostate report lora.ostate.safetensors --adapter {CHECKPOINT} -o report.html"),
    (
        "And a probe number, guarded:",
        f"ostate probe lora.ostate.safetensors --model ostate-demo/base --adapter {CHECKPOINT} --data probe.jsonl",
    ),
)


def main() -> None:
    """Run every step in an empty folder and write the page; leave with 1 when a step fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, help="an environment that has ostate already; the installation is then left out")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        (folder / "probe.jsonl").write_text(RECORDS, encoding="utf-8")
        began = time.monotonic()
        python = chosen.python.absolute() if chosen.python else install(folder)
        installed = None if chosen.python else time.monotonic() - began
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OSTATE_")}
        environment |= {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "120"}
        parts = [step(says, command, folder, environment) for says, command in STEPS]
        spent = time.monotonic() - began
    chosen.out.write_text(page(parts, spent, installed), encoding="utf-8")
    print(f"wrote {chosen.out}: {spent:.0f} s, of which {installed or 0:.0f} s to install")


def install(folder: Path) -> Path:
    """Make an environment in `folder`, install this source tree into it as the page says, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", "constraints.txt", ".[demo]"], check=True, cwd=ROOT)
    return python


def step(says: str, command: str, folder: Path, environment: dict[str, str]) -> str:
    """Run one command and return its part of the page: the command, what it printed, how long it took."""
    began = time.monotonic()
    done = subprocess.run(command.split(), cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    spent = time.monotonic() - began
    if done.returncode not in (0, 1):
        raise SystemExit(f"$ {command}\n{done.stdout}")
    told = "" if done.returncode == 0 else f", exit code {done.returncode}"
    return f"{says}\n\n```console\n$ {command}\n{done.stdout.rstrip()}\n```\n\n({spent:.1f} s{told})\n"


def page(parts: list[str], spent: float, installed: float | None) -> str:
    """Return the whole page."""
    head = (
        "# First five minutes\n\n<!-- written by examples/first_five_minutes.py; edit that -->\n\n"
        "From a clone of the repository, in an environment of its own:\n\n"
        "```text\npython3 -m venv .venv\n. .venv/bin/activate\npip install -c constraints.txt '.[demo]'\n```\n\n"
        "The constraints are the versions that were tried together. What follows is the screen as it was.\n"
    )
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, no GPU"
    told = "the installation not counted" if installed is None else f"{installed:.0f} of them for the installation"
    return "\n".join([head, *parts, f"All of it took {spent:.0f} seconds, {told}, on {machine}.\n"])


if __name__ == "__main__":
    main()
