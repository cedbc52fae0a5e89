"""setuptools' build backend, with the same bytes from the same files: `pip wheel .` and `python -m build` twice give one archive twice.

A wheel takes its times from SOURCE_DATE_EPOCH, which setuptools reads, and its modes from the disk, so from the umask of who checked the files out; a
source archive takes times, owners, modes and the order of its members from there, and the time of the build stands in gzip's header. These are
written anew here.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  the hooks of PEP 517 and 660, which the installer asks this module for

EPOCH = "315532800"
"""1980-01-01, the earliest time that a zip archive can hold; a release sets SOURCE_DATE_EPOCH to the time of its commit."""
os.environ.setdefault("SOURCE_DATE_EPOCH", EPOCH)


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    """Build the source archive as setuptools does, and write it anew; returns its name."""
    name: str = build_meta.build_sdist(sdist_directory, config_settings)
    _same_tar(Path(sdist_directory, name), int(os.environ["SOURCE_DATE_EPOCH"]))
    return name


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Build the wheel as setuptools does, and write its modes anew; returns its name."""
    name: str = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    _same_zip(Path(wheel_directory, name))
    return name


def _same_tar(archive: Path, when: int) -> None:
    """Write a .tar.gz anew: members by name, without owners, all of one time, in seconds since 1970."""
    content = io.BytesIO()
    with tarfile.open(archive) as old, tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda one: one.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname, member.pax_headers = when, 0, 0, "", "", {}
            member.mode = 0o755 if member.isdir() else _mode(member.mode)
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    with archive.open("wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=when) as packed:
        packed.write(content.getvalue())


def _same_zip(archive: Path) -> None:
    """Write a wheel anew, its members in the order that they have."""
    content = io.BytesIO()
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            member.external_attr = (stat.S_IFREG | _mode(member.external_attr >> 16)) << 16
            new.writestr(member, old.read(member))
    archive.write_bytes(content.getvalue())


def _mode(told: int) -> int:
    return 0o755 if told & 0o100 else 0o644
