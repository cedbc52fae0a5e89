"""What `pip install ostate` brings is enough for all that looks at files: the same bytes with everything else kept from being imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ostate.errors import EXTRAS
from tests.real import case
from tests.test_packaging import PROJECT, setuptools_section

ROOT = Path(__file__).parent.parent
RUN = ROOT / "tests" / "cases" / "long" / "long_opt"
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""
COMMANDS = """
import contextlib, io
from ostate.cli import main
for words in {commands!r}:
    with contextlib.suppress(SystemExit):
        main(words)
    print("----", flush=True)
print(sorted({heavy!r} & {{name.partition(".")[0] for name in sys.modules}}))
"""
HEAVY = {"torch", "peft", "transformers", "safetensors", "scipy", "accelerate", "matplotlib", "fsspec", "jinja2", "huggingface_hub", "pandas"}


def commands():
    last, first = RUN / "checkpoint-300", RUN / "checkpoint-60"
    named = ["lora.ostate.safetensors"]
    return [
        ["inspect", str(last), "--values"],
        ["names", str(last)],
        ["repair", str(last), "-o", *named],
        ["repair", str(first), "-o", "first.ostate.safetensors"],
        ["verify", *named, "--adapter", str(last)],
        ["validate", *named, "--deep"],
        ["diff", *named, "first.ostate.safetensors"],
        *(["export", *named, "--to", to, "-o", to] for to in ("torch", "accelerate", "less", "bergson", "dattri", "ota", "names", "ostate")),
        ["report", *named, "--adapter", str(last), "-o", "report.html"],
    ]


def in_process(code, place, blocked):
    place.mkdir(exist_ok=True)
    script = f"BLOCKED = {set(blocked)!r}\n{BLOCK}\n{code}"
    environment = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(place / "cache"), "PATH": "", "HOME": str(place)}
    return subprocess.run([sys.executable, "-c", script], cwd=place, env=environment, capture_output=True, text=True, check=False)


def outcome(place, blocked):
    """Return what the commands printed, and every file that they left."""
    done = in_process(COMMANDS.format(commands=commands(), heavy=HEAVY), place, blocked)
    assert done.returncode == 0, done.stderr
    *printed, heavy = done.stdout.split("----")
    files = {str(file.relative_to(place)): file.read_bytes() for file in sorted(place.rglob("*")) if file.is_file() and "cache" not in file.parts}
    return printed, done.stderr, heavy.strip(), files


def test_files_and_words_are_the_same_with_and_without_all_that_is_optional(tmp_path):
    alone, whole = outcome(tmp_path / "alone", HEAVY), outcome(tmp_path / "whole", ())
    assert alone[2] == "[]"
    assert len(alone[0]) == len(commands())
    assert alone[0] == whole[0]
    assert alone[1] == whole[1]
    assert alone[3].keys() == whole[3].keys() >= {"lora.ostate.safetensors", "torch", "report.html", "ota"}
    for name, found in alone[3].items():
        assert found == whole[3][name], name


def dependencies():
    return set(re.findall(r'"([\w-]+)>=', re.search(r"^dependencies = \[(.*?)\]", PROJECT, re.MULTILINE | re.DOTALL).group(1)))


def extras():
    return {
        name: set(re.findall(r'"([\w-]+)[>=\["]', rows))
        | {f"ostate[{more}]" for found in re.findall(r"ostate\[([\w,]+)\]", rows) for more in found.split(",")}
        for name, rows in re.findall(r"^([\w-]+) = \[(.*?)\n?\]$", setuptools_section("project.optional-dependencies"), re.MULTILINE | re.DOTALL)
    }


def packages_of(extra):
    rows = extras()[extra]
    return {row for row in rows if "[" not in row} | {each for row in rows if "[" in row for each in packages_of(row[7:-1])} - {"ostate"}


def test_the_core_is_four_packages():
    assert dependencies() == {"click", "jsonschema", "numpy", "rich"}


def test_each_optional_package_comes_with_the_extra_that_is_named_for_it():
    optional = {package: named[7:-1] for package, named in EXTRAS.items() if named.startswith("ostate[")}
    assert set(optional) == set(EXTRAS) - {"yaml"}
    for package, extra in optional.items():
        assert package in packages_of(extra), f"{extra} does not bring {package}"
    assert packages_of("all") >= set(optional) - {"accelerate"}
    assert packages_of("test") >= set(optional)


MISSING = [
    ("torch", "probe", "import ostate.probe"),
    ("torch", "probe", "import ostate; ostate.export('NAMED', 'dcp', 'out')"),
    ("torch", "probe", "import ostate; ostate.export('NAMED', 'deepspeed-universal', 'out', adapter='ADAPTER')"),
    ("peft", "base", "import ostate.probe.measure.loading as p; p.load_model('.', '.')"),
    ("safetensors", "base", "import ostate.probe.measure.loading"),
    ("transformers", "base", "import ostate.probe.measure.loading as p; p.load_model('.', '.')"),
    ("peft", "base", "import ostate; ostate.repair('RUN/checkpoint-300', base='CONFIG')"),
    ("transformers", "base", "import ostate; ostate.verify('RUN/checkpoint-300', base='CONFIG')"),
    ("accelerate", "demo", "from ostate.commands.demo import run; run('.', print, None)"),
    ("torch", "demo", "from ostate.commands.demo import run; run('.', print, None)"),
    ("fsspec", "remote", "import ostate; ostate.inspect('memory://optimizer.pt')"),
    ("matplotlib", "plot", "import ostate.plot as p; p.second_moment(__import__('ostate').load('NAMED'))"),
]


@pytest.mark.parametrize(("package", "extra", "code"), MISSING, ids=[f"{package} for {code.split('; ')[-1][:40]}" for package, _, code in MISSING])
def test_what_is_missing_is_named_with_the_extra_that_brings_it(package, extra, code, tmp_path):
    golden = ROOT / "tests" / "golden" / "0.1.0" / "lora.ostate.safetensors"
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "opt"}')
    code = code.replace("NAMED", str(golden)).replace("RUN", str(RUN)).replace("CONFIG", str(config))
    code = code.replace("ADAPTER", str(case("llama_qv").adapter))
    done = in_process(f"try:\n    {code}\nexcept ImportError as error:\n    print(type(error).__name__, error.fix)", tmp_path, {package})
    assert done.stdout.strip() == f"MissingPackage pip install 'ostate[{extra}]'", done.stderr


def test_a_model_that_only_might_have_been_rebuilt_stops_nothing_and_its_reason_names_the_extra(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "opt"}')
    code = (
        f"import shutil, json, ostate\nshutil.copytree({str(RUN / 'checkpoint-300')!r}, 'run')\n"
        "config = json.load(open('run/adapter_config.json'))\nconfig['base_model_name_or_path'] = '../base'\n"
        "json.dump(config, open('run/adapter_config.json', 'w'))\ndone = ostate.repair('run')\n"
        "print(done.ordering.verdict)\nprint([loser['reason'] for loser in done.ordering.rejected])"
    )
    done = in_process(code, tmp_path, {"peft", "transformers", "torch"})
    assert done.stdout.startswith("verified"), done.stderr
    assert "pip install 'ostate[base]'" in done.stdout
