"""What a command may cost, counted, not timed: bytes read, modules imported, memory asked for, functions called."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tracemalloc
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ostate
from ostate.commands import validate as validation
from ostate.core import files

MB = 1 << 20


def checkpoint(folder: Path, *, layers: int, rank: int = 4, wide: int = 64) -> Path:
    """A LoRA that a few steps of the real AdamW trained, with names recorded; gradients are those of B A."""
    torch.manual_seed(0)
    parameters = {}
    for layer in range(layers):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        parameters[f"{stem}A.default.weight"] = torch.nn.Parameter(torch.randn(rank, wide) / wide**0.5)
        parameters[f"{stem}B.default.weight"] = torch.nn.Parameter(torch.zeros(wide, rank))
    optimizer = torch.optim.AdamW(list(parameters.items()), lr=1e-3)
    pairs = list(zip(*[iter(parameters.values())] * 2))
    sides = [(torch.randn(wide, 4), torch.randn(4, wide)) for _ in pairs]
    for _ in range(6):
        for (a, b), (left, right) in zip(pairs, sides):
            tall, flat = left + torch.randn_like(left), right + torch.randn_like(right)  # the gradient of B A is their product
            a.grad, b.grad = (b.detach().T @ tall) @ flat, tall @ (flat @ a.detach().T)
        optimizer.step()
    folder.mkdir(exist_ok=True)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    save_file({name.replace(".default", ""): value.detach() for name, value in parameters.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(f'{{"peft_type": "LORA", "r": {rank}, "target_modules": ["q_proj"]}}')
    return folder


class Read:
    """Counts bytes through the one place where bytes are read, by file name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_name: dict[str, int] = {}
        whole, into = files._read_local, files.system.read_into

        def counted(path: str, offset: int, length: int) -> bytes:
            self.by_name[Path(path).name] = self.by_name.get(Path(path).name, 0) + length
            return whole(path, offset, length)

        def filled(descriptor: int, view: memoryview, offset: int) -> int:
            count = into(descriptor, view, offset)
            name = Path(f"/proc/self/fd/{descriptor}").readlink().name
            self.by_name[name] = self.by_name.get(name, 0) + count
            return count

        monkeypatch.setattr(files, "_read_local", counted)
        monkeypatch.setattr(files.system, "read_into", filled)


def calls_of(work) -> int:
    """Count the functions that `work` calls, of Python and of C."""
    count = 0

    def note(frame, event, argument) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_inspect_reads_the_index_and_no_tensor(tmp_path, monkeypatch):
    sizes = []
    for wide in (64, 1024):
        folder = checkpoint(tmp_path / str(wide), layers=8, wide=wide)
        read = Read(monkeypatch)
        ostate.inspect(str(folder / "optimizer.pt"))
        sizes.append(read.by_name["optimizer.pt"])
    assert sizes[1] < sizes[0] + 2048
    assert sizes[0] < 60_000


def test_the_work_of_inspect_grows_with_tensors_linearly_and_slowly(tmp_path):
    few, many = (str(checkpoint(tmp_path / str(layers), layers=layers, wide=8) / "optimizer.pt") for layers in (50, 250))
    ostate.inspect(few)
    work = [calls_of(lambda path=path: ostate.inspect(path)) for path in (few, many)]
    assert (work[1] - work[0]) / 1200 < 120  # a layer has six tensors: two moments of two factors, and their steps


def test_verify_reads_every_number_once(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path / "run", layers=12, wide=512)
    read = Read(monkeypatch)
    found = ostate.verify(str(folder))
    assert found.verdict == "verified"
    for name in ("optimizer.pt", "adapter_model.safetensors"):
        assert read.by_name[name] < 1.15 * (folder / name).stat().st_size + 100_000


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A state of 12 MB and its named file, without the adapter."""
    folder = checkpoint(tmp_path_factory.mktemp("named") / "run", layers=24, wide=4096, rank=8)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_config.json").unlink()
    ostate.repair(str(folder / "optimizer.pt"), str(folder / "out.safetensors"), evidence=False)
    return folder


def test_repair_without_evidence_reads_the_state_once_and_holds_a_chunk(named, tmp_path, monkeypatch):
    read = Read(monkeypatch)
    tracemalloc.start()
    ostate.repair(str(named / "optimizer.pt"), str(tmp_path / "out.safetensors"), evidence=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (named / "optimizer.pt").stat().st_size
    assert size > 12 * MB
    assert peak < 4 * MB
    assert read.by_name["optimizer.pt"] < 1.05 * size


def test_repair_without_evidence_reads_none_of_the_adapters_numbers(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path / "run", layers=12, wide=512)
    read = Read(monkeypatch)
    ostate.repair(str(folder), str(tmp_path / "quick.safetensors"), evidence=False)
    assert read.by_name["adapter_model.safetensors"] < 20_000 < (folder / "adapter_model.safetensors").stat().st_size / 4
    assert ostate.load(tmp_path / "quick.safetensors").adapter["sha256"] is None
    ostate.repair(str(folder), str(tmp_path / "proven.safetensors"))
    digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert ostate.load(tmp_path / "proven.safetensors").adapter["sha256"] == digest


def test_validate_reads_every_byte_once_for_digests_and_rules(named, monkeypatch):
    read = Read(monkeypatch)
    assert validation.validate(named / "out.safetensors", deep=True).sound
    size = (named / "out.safetensors").stat().st_size
    assert size <= read.by_name["out.safetensors"] < size + 300_000


def test_diff_reads_equal_states_once(named, monkeypatch):
    read = Read(monkeypatch)
    assert ostate.diff(str(named / "optimizer.pt"), str(named / "out.safetensors")).same
    for name in ("optimizer.pt", "out.safetensors"):
        assert read.by_name[name] < (named / name).stat().st_size + 300_000


def test_export_reads_the_state_once_and_holds_a_chunk(named, tmp_path, monkeypatch):
    read = Read(monkeypatch)
    tracemalloc.start()
    ostate.export(named / "out.safetensors", "torch", tmp_path / "optimizer.pt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MB
    assert read.by_name["out.safetensors"] < (named / "out.safetensors").stat().st_size + 300_000


@pytest.mark.parametrize("layout", ["torch", "accelerate", "less", "bergson", "dattri"])
def test_export_imports_neither_torch_nor_numpy(named, tmp_path, layout):
    words = ["export", str(named / "out.safetensors"), "--to", layout, "-o", str(tmp_path / "out")]
    assert not HEAVY & set(modules_of(words))


HEAVY = {"torch", "scipy", "peft", "transformers", "rich", "jsonschema", "numpy", "matplotlib", "safetensors"}
ALLOWED = {
    "--help": set(),
    "inspect": set(),
    "repair --no-evidence": {"numpy"},
    "verify": {"numpy"},
}


def modules_of(words):
    """Run a command in a process of its own; return all that it imported."""
    script = f"import sys, atexit\natexit.register(lambda: print(*sys.modules, file=sys.stderr))\nfrom ostate.cli import main\nmain({words!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stderr.splitlines()[-1].split()


@pytest.mark.parametrize("command", ALLOWED)
def test_a_command_imports_what_it_needs(command, tmp_path):
    folder = checkpoint(tmp_path / "run", layers=6)
    words = command.split()
    if command != "--help":
        words.insert(1, str(folder))
    if "repair" in words:
        words += ["-o", str(tmp_path / "out.safetensors")]
    modules = modules_of(words)
    assert HEAVY & set(modules) <= ALLOWED[command]
    if command in ("--help", "inspect"):
        assert len(modules) < 230


def test_a_repair_that_compares_no_number_imports_nothing_that_would(named, tmp_path):
    modules = modules_of(["repair", "--no-evidence", str(named / "optimizer.pt"), "-o", str(tmp_path / "out.safetensors")])
    assert "ostate.evidence.untested" in modules
    assert not {f"ostate.evidence.{name}" for name in ("comparison", "order", "looks", "gauge", "tables.tables")} & set(modules)


def test_a_proof_imports_no_search(tmp_path):
    modules = modules_of(["verify", str(checkpoint(tmp_path / "run", layers=6))])
    assert "ostate.evidence.order" in modules
    assert not {f"ostate.evidence.{name}" for name in ("ask", "recover", "densities", "tables.tables")} & set(modules)
    assert "numpy.ma" not in modules


def test_a_repair_does_not_ask_at_every_tensor_which_file_it_reads(tmp_path, monkeypatch):
    asked = []
    for layers in (6, 12):
        folder, count, stat = checkpoint(tmp_path / str(layers), layers=layers), [], os.stat
        monkeypatch.setattr(files.os, "stat", lambda path, *, count=count, stat=stat, **words: (count.append(path), stat(path, **words))[1])
        ostate.repair(str(folder), str(tmp_path / f"{layers}.safetensors"))
        monkeypatch.undo()
        asked.append(sum("optimizer.pt" in str(path) for path in count))
    assert asked[0] == asked[1]


def test_orders_that_no_number_will_be_held_against_are_not_made(named, monkeypatch):
    made = []
    monkeypatch.setattr("ostate.ordering.resolve.family_of", lambda *known: made.append(known))
    ostate.repair(str(named / "optimizer.pt"), evidence=False)
    assert not made


FAULTS = """
import resource, sys
import numpy as np
from ostate.core.system import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for turn in range(60):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(100_000) for _ in range(6)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's mallopt")
def test_memory_that_is_freed_is_used_again():
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True).stdout) for way in ("given back", "kept")
    )
    assert kept < 1000 < given_back


@pytest.mark.parametrize(("asked", "threads"), [({}, 1), ({"OMP_NUM_THREADS": "2"}, 2)], ids=["nobody-asked", "two-asked-for"])
def test_the_program_multiplies_in_one_thread_where_nobody_asked_for_more(tmp_path, asked, threads):
    folder = checkpoint(tmp_path / "run", layers=6)
    script = "import os, atexit\natexit.register(lambda: print(len(os.listdir('/proc/self/task'))))\nfrom ostate.cli import run\nrun()"
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", script, "-q", "verify", str(folder)], capture_output=True, text=True, check=True, env={**environment, **asked}
    )
    assert int(done.stdout.splitlines()[-1]) == min(threads, len(os.sched_getaffinity(0)))


def test_inspect_of_a_file_makes_no_dataclass_and_parses_no_json(tmp_path):
    state = checkpoint(tmp_path / "run", layers=6) / "optimizer.pt"
    with_click = subprocess.run([sys.executable, "-c", "import sys, click; print(*sys.modules)"], capture_output=True, text=True, check=True)
    assert not {"dataclasses", "json", "shutil", "hashlib"} & (set(modules_of(["inspect", str(state)])) - set(with_click.stdout.split()))


def instructions(code: str, *words: str | Path) -> int:
    """Count the instructions of a Python process; its modules are compiled already."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-c", code, *words]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(command[3:], capture_output=True, check=True, env=environment)
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(next(line for line in done.stderr.splitlines() if "Collected" in line).split()[-1])


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind counts instructions")
def test_inspect_takes_no_more_instructions_than_it_did(tmp_path):
    state = checkpoint(tmp_path / "run", layers=224, wide=8) / "optimizer.pt"  # 448 parameters, as Llama 7B has
    ratio = instructions("from ostate.cli import run; run()", "inspect", state) / instructions("import click")
    assert ratio < 2.1


def test_recorded_names_build_no_model(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("the skeleton was asked")

    monkeypatch.setattr(import_module("ostate.ordering.sources.rebuilt.model"), "layouts_of", never)
    folder = checkpoint(tmp_path / "run", layers=6)
    assert ostate.verify(str(folder)).source == "recorded"
