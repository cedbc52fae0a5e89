"""What ships is what lies in the tree: every package, every template and schema, the marker for type checkers."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import ostate

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text()


def setuptools_section(name):
    """Return the text of one table of pyproject.toml (tomllib is not in Python 3.10)."""
    found = re.search(rf"^\[{re.escape(name)}\]\n(.*?)(?=^\[|\Z)", PROJECT, re.MULTILINE | re.DOTALL)
    assert found, name
    return found.group(1)


def packages():
    listed = re.search(r"^packages = \[(.*?)\]", setuptools_section("tool.setuptools"), re.MULTILINE | re.DOTALL)
    return set(re.findall(r'"([\w.]+)"', listed.group(1)))


def folder(package):
    return ROOT / "schemas" if package == "ostate.schemas" else ROOT / package.replace(".", "/")


def test_every_package_is_listed_and_every_listed_one_exists():
    there = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "ostate").rglob("*.py")} | {"ostate.schemas"}
    assert packages() == there
    assert all((folder(package) / "__init__.py").is_file() for package in packages())


def test_every_file_that_is_not_python_ships():
    data = {
        package: re.findall(r'"([^"]+)"', globs)
        for package, globs in re.findall(r'"([\w.]+)" = \[(.*?)\]', setuptools_section("tool.setuptools.package-data"))
    }
    for package in packages():
        for file in folder(package).iterdir():
            if file.is_file() and file.suffix not in {".py", ".pyc"}:
                assert any(fnmatch.fnmatch(file.name, glob) for glob in data.get(package, [])), f"{package}: {file.name}"


def test_the_version_is_told_alike_everywhere():
    assert 'version = { attr = "ostate.__version__" }' in PROJECT
    assert f"version: {ostate.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert (ROOT / "tests" / "golden" / ostate.__version__).is_dir(), "run: python -m tests.golden.make"
    done = subprocess.run([sys.executable, "-m", "ostate", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == ostate.__version__


def test_type_checkers_are_told():
    assert (ROOT / "ostate" / "py.typed").is_file()


def test_actions_are_pinned_by_commit_and_jobs_start_without_rights():
    for file in (ROOT / ".github").rglob("*.yml"):
        for used in re.findall(r"uses: (\S+)", file.read_text()):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", used), f"{file.name}: {used}"
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        assert re.search(r"^permissions: \{\}$", file.read_text(), re.MULTILINE), file.name


def test_the_oldest_dependencies_are_those_that_the_project_admits():
    needed = re.sub(r"^docs = .*$|^requires = .*$", "", PROJECT, flags=re.MULTILINE)
    floor = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', needed))
    assert "torch" in floor
    told = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / ".github" / "constraints-oldest.txt").read_text(), re.MULTILINE))
    for name, version in floor.items():
        assert (told[name] + ".").startswith(version + "."), name


BUILD = """
import os, sys
out, umask = sys.argv[1:]
os.umask(int(umask))
os.makedirs(out)
sys.path.insert(0, ".ci")
import backend
print(backend.build_sdist(out), backend.build_wheel(out))
"""


def built(tree, out, umask):
    """Return the bytes of source archive and wheel of a tree, made by the backend that pyproject.toml names."""
    env = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"}
    done = subprocess.run([sys.executable, "-c", BUILD, str(out), str(umask)], cwd=tree, env=env, capture_output=True, text=True, check=True)
    return [(out / name).read_bytes() for name in done.stdout.split()[-2:]]


def test_what_ships_has_the_same_bytes_whoever_builds_it_and_when(tmp_path):
    assert re.search(r'^build-backend = "backend".*\nbackend-path = \["\.ci"\]$', PROJECT, re.MULTILINE)
    left = shutil.ignore_patterns(".git", ".venv", "tests", "docs", "build", "*.egg-info", "__pycache__", ".*_cache")
    copies = []
    for number, (umask, when) in enumerate(((0o022, 1_600_000_000), (0o077, 1_700_000_000))):
        tree = shutil.copytree(ROOT, tmp_path / f"tree-{number}", ignore=left)
        for file in tree.rglob("*"):
            os.utime(file, (when, when))
            file.chmod(file.stat().st_mode & ~umask)
        copies.append(built(tree, tmp_path / f"out-{number}", umask))
    assert copies[0] == copies[1]


def test_tests_that_the_workflow_leaves_out_are_there():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    files, tests = re.findall(r"--ignore (\S+)", text), re.findall(r"--deselect ([\w/.]+)::(\w+)", text)
    assert files
    assert tests
    assert all((ROOT / file).is_file() for file in files)
    assert all(f"def {name}(" in (ROOT / file).read_text() for file, name in tests)


def broken_copy(folder):
    golden = ROOT / "tests" / "golden" / "0.1.0" / "lora.ostate.safetensors"
    sound, broken = folder / "a b.ostate.safetensors", folder / "broken.ostate.safetensors"
    shutil.copy(golden, sound)
    changed = bytearray(golden.read_bytes())
    changed[-3] ^= 1
    broken.write_bytes(changed)
    return sound, broken


def shell_environment():
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def needs(extra):
    """Return the packages of an extra, and of those it names."""
    listed = re.search(rf"^{extra} = \[(.*?)\]$", PROJECT, re.MULTILINE | re.DOTALL)
    found = set()
    for one in re.findall(r'"([^"]+)"', listed.group(1)):
        inner = re.fullmatch(r"ostate\[(.*)\]", one)
        found |= set().union(*(needs(name) for name in inner.group(1).split(","))) if inner else {re.match(r"[\w-]+", one)[0]}
    return found


def test_every_package_of_the_tests_and_the_docs_is_locked_with_its_digests():
    text = (ROOT / ".github" / "locked.txt").read_text()
    locked = {name.lower().replace("_", "-") for name in re.findall(r"^([\w.-]+)==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)}
    assert len(locked) == len(re.findall(r"^\w", text, re.MULTILINE))
    wanted = {name.lower().replace("_", "-") for extra in ("test", "docs") for name in needs(extra)}
    assert wanted - locked == {"torch"}, "run: .github/lock.sh"


def test_the_hook_passes_what_is_sound_and_stops_what_is_not(tmp_path):
    (entry, *_) = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-hooks.yaml").read_text())
    sound, broken = broken_copy(tmp_path)
    for files, code in (([sound], 0), ([sound, broken], 1), ([broken, sound], 1)):
        done = subprocess.run([*shlex.split(entry), *map(str, files)], env=shell_environment(), capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr


def test_the_docs_show_the_hook_that_is_tested():
    entries = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-hooks.yaml").read_text())
    assert len(set(entries)) == 1
    assert f"entry: {entries[0]}\n" in (ROOT / "docs" / "command-line.md").read_text()


def test_the_action_finds_the_files_and_stops_on_one_that_is_not_sound(tmp_path):
    script = (ROOT / ".github" / "actions" / "validate" / "action.yml").read_text().rpartition("run: |\n")[2]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    sound, broken = broken_copy(tmp_path / "deep" / "er")

    def run(pattern):
        env = {**shell_environment(), "FILES": pattern, "DEEP": "true"}
        return subprocess.run(["bash", "-e", "-o", "pipefail", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    failed = run("**/*.ostate.safetensors")
    assert failed.returncode == 1
    (said,) = [line for line in failed.stdout.splitlines() if line.startswith("::error")]
    assert said.startswith("::error file=deep/er/broken.ostate.safetensors,title=ostate validate::not sound%0A%0AERROR: the bytes of ")
    (stop,) = {line for line in failed.stdout.splitlines() if line.startswith("::stop-commands::")}
    assert failed.stdout.splitlines().count(f"::{stop.removeprefix('::stop-commands::')}::") == 2
    broken.unlink()
    done = run("none/*.x **/*.ostate.safetensors")
    assert done.returncode == 0, done.stderr
    assert "sound" in done.stdout
    sound.unlink()
    assert run("**/*.ostate.safetensors").returncode == 1
