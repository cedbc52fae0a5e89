"""Which files of a checkout should not be there: links, and what editors, caches and tools leave."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePath

LEFTOVERS = ("*~", "*.orig", "*.rej", "*.swp", "*.pyc", "*.log", "*.tmp", "*.bak", ".DS_Store", "Thumbs.db", "nohup.out", "core.[0-9]*")


def ignored(root: Path) -> list[str]:
    """Return the names that `.gitignore` lists, without the stroke that says folder."""
    lines = (root / ".gitignore").read_text(encoding="utf-8").splitlines()
    return [line.strip("/") for line in lines if line and not line.startswith("#")]


def tracked(root: Path, git: str) -> Iterator[tuple[str, bool]]:
    """Yield the path of each file that git tracks below `root`, and whether it is a link (mode 120000)."""
    listed = subprocess.run([git, "ls-files", "-s", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    for row in filter(None, listed.split("\0")):
        about, _, path = row.partition("\t")
        yield path, about.split()[0] == "120000"


def walked(root: Path) -> Iterator[tuple[str, bool]]:
    """Yield the path of each file and link below `root` that is not ignored, and whether it is a link."""
    patterns, folders = [*ignored(root), ".git"], [root]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            if any(fnmatch(path.name, pattern) for pattern in patterns):
                continue
            if path.is_dir() and not path.is_symlink():
                folders.append(path)
            else:
                yield path.relative_to(root).as_posix(), path.is_symlink()


def untidy(root: Path) -> list[str]:
    """Return a line for each link, each leftover and each file that is tracked although `.gitignore` names it or its folder."""
    patterns = [*ignored(root), *LEFTOVERS]
    lines = []
    git = shutil.which("git") if (root / ".git").exists() else None
    for path, is_link in tracked(root, git) if git else walked(root):
        named = next((pattern for pattern in patterns for part in PurePath(path).parts if fnmatch(part, pattern)), "")
        lines += [f"{path}: a link"] if is_link else [f"{path}: {named}"] if named else []
    return lines
